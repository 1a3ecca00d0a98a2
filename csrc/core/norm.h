// RMSNorm of one head, which may come before its rotation, and the derivatives of both. The order of every sum is
// defined here and in rope_ext/_reference_norm.py, so that results do not depend on vectors, threads or devices.
//
// With r = 1 / sqrt(sum(x[i] * x[i]) / head_dim + eps), channel i of the head becomes (x[i] * r) * weight[i].
// Given the gradient g of F with respect to these channels, with u[i] = g[i] * weight[i]:
//     dF/dx[i]      = (u[i] - x[i] * c) * r,  c = sum(u[i] * x[i]) / head_dim * (r * r)
//     dF/dweight[i] = sum over rows of g[i] * (x[i] * r)
//
// Sums over a head add the channels in the order of memory, q[0] to q[head_dim - 1], by a tree: with zeros up to a
// power of two n >= max(head_dim, kSumLanes), q[i] += q[i + n / 2] while n > kSumLanes, n halved each time; then
// neighbours, q[i] = q[2i] + q[2i + 1], down to one. A vector of 32 elements of 16 bits, whose halves are even and odd
// channels, needs no lane moved until the last four levels.
//
// The sum over rows adds, from 0 on, the heads of a token one after another; then tokens in the order batch, seqlen by
// a tree of neighbours, s[i] = s[2i] + s[2i + 1], with zeros up to a power of two. Blocks of kBlockTokens are its
// subtrees, whoever computes them.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"

namespace rope {

constexpr int kSumLanes = 32;
constexpr int64_t kBlockTokens = 16;

// Square root and divisions round correctly on every device.
template <class A>
ROPE_INLINE A inverse_rms(A sum_of_squares, A head_dim, A eps) {
  return A(1) / std::sqrt(sum_of_squares / head_dim + eps);
}

// V is one number, or a vector of them. round: applied to x * r before the weight, for eager code whose norm returns
// the dtype of x there.
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
