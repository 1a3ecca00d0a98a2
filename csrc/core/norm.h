// RMSNorm of one head, optional before its rotation, and the derivatives of both. The order of every sum is defined
// here and in rope_ext/_reference_norm.py, so that results do not depend on vector width, thread count or device.
//
// With r = 1 / sqrt(sum(x[i] * x[i]) / head_dim + eps), channel i of the head becomes (x[i] * r) * weight[i].
// Given the gradient g of F with respect to these channels, with u[i] = g[i] * weight[i]:
//     dF/dx[i]      = (u[i] - x[i] * c) * r,  c = sum(u[i] * x[i]) / head_dim * (r * r)
//     dF/dweight[i] = sum over rows of g[i] * (x[i] * r)
//
// Sums over a head add q[0] to q[head_dim - 1], the channels in memory order, by a tree. They are padded with zeros to
// a power of two n >= max(head_dim, kSumLanes); q[i] += q[i + n / 2] while n > kSumLanes, halving n each time; then
// neighbors are added, q[i] = q[2i] + q[2i + 1], down to one. A vector of 32 16-bit elements, whose halves hold the
// even and the odd channels, moves no lane until the last four levels.
//
// The sum over rows first adds the heads of each token one after another, starting from 0. The sums of the tokens, in
// the order (batch, seqlen) and padded with zeros to a power of two, are then added by a tree of neighbors, s[i] =
// s[2i] + s[2i + 1]. Each block of kBlockTokens tokens is a subtree, whichever thread computes it.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"

namespace rope {

constexpr int kSumLanes = 32;         // channels
constexpr int64_t kBlockTokens = 16;  // tokens per subtree of the sum over rows

// The square root and the divisions are correctly rounded on every device.
template <class A>
ROPE_INLINE A inverse_rms(A sum_of_squares, A head_dim, A eps) {
  return A(1) / std::sqrt(sum_of_squares / head_dim + eps);
}

// V: a number or a vector. round: applied to x * r before the product with the weight, to match eager code that casts
// this product to the dtype of x.
template <class V, class Round>
ROPE_INLINE V normalised(V x, V r, V weight, const Round& round) {
  return round(x * r) * weight;
}

// The factor c of dF/dx.
template <class A>
ROPE_INLINE A norm_correction(A sum_of_products, A head_dim, A r) {
  return sum_of_products / head_dim * (r * r);
}

template <class V>
ROPE_INLINE V norm_gradient(V u, V x, V c, V r) {
  return (u - x * c) * r;
}

template <class V>
ROPE_INLINE V weight_gradient(V g, V x, V r) {
  return g * (x * r);
}

}  // namespace rope
