// The gradients of normalized heads (core/norm.h), from gradients that are already rotated back.
#pragma once

#include <type_traits>

#include "core/norm.h"
#include "cpu/channels.h"
#include "cpu/head_sums.h"

namespace rope::cpu {
namespace {

// Some heads of a token: pointers to the first head, strides in elements.
template <class T>
struct NormGradRows {
  const T* x;
  T* grad_x;  // null: not requested
  const Arithmetic<T>*gradient, *weight, *inv_rms, *corrections;
  Arithmetic<T>* sum;  // accumulates the gradient of the weight; not cleared first
  int64_t heads, x_stride, grad_x_stride, gradient_stride, x_channel, grad_x_channel;
  bool in_run_order;
};

// Reads n <= kStep channels of x and of the rotated gradient. kDirect: see norm_gradients.
template <bool kDirect, bool kFull, class T>
ROPE_INLINE Pair<Lanes<T>> read_with_gradient(const T* x, int64_t x_channel, const Arithmetic<T>* gradient, int64_t n,
                                              bool in_run_order) {
  return {read_channels<T, kFull>(x, kDirect ? 1 : x_channel, n),
          read_kept<kFull, T>(gradient, n, kDirect && kFull ? true : in_run_order)};
}

// Writes the gradient of x, and accumulates the gradient of the weight over the heads, for kSteps steps of channels
// from `channel` on. kDirect: channels are contiguous, the rotated gradient is in run order, and the gradient of x is
// requested. rows: by value, because the compiler then knows that no store aliases them.
template <bool kNonTemporal, bool kDirect, bool kFull, int kSteps, class T>
ROPE_INLINE void norm_gradients(const NormGradRows<T> rows, int64_t channel, int64_t n) {
  using L = Lanes<T>;
  L weight[kSteps], sum[kSteps];
  for (int s = 0; s < kSteps; ++s) {
    weight[s] = read_lanes<L>(rows.weight + channel + s * kStep<T>);
    sum[s] = read_lanes<L>(rows.sum + channel + s * kStep<T>);
  }
  const int64_t x_channel = kDirect ? 1 : rows.x_channel, grad_x_channel = kDirect ? 1 : rows.grad_x_channel;
  const T* x = rows.x + channel * x_channel;
  T* grad_x = rows.grad_x + channel * grad_x_channel;
  const Arithmetic<T>* gradient = rows.gradient + channel;
  for (int64_t h = 0; h < rows.heads; ++h) {
    const L r = broadcast<L>(rows.inv_rms[h]), correction = broadcast<L>(rows.corrections[h]);
    for (int s = 0; s < kSteps; ++s) {
      const int64_t c = s * kStep<T>;
      const auto [v, g] =
          read_with_gradient<kDirect, kFull>(x + c * x_channel, x_channel, gradient + c, n, rows.in_run_order);
      sum[s] = sum[s] + weight_gradient(g, v, r);
      if (!kDirect && !rows.grad_x) continue;
      write_channels<kFull, kNonTemporal>(norm_gradient(g * weight[s], v, correction, r), grad_x + c * grad_x_channel,
                                          grad_x_channel, n);
    }
    x += rows.x_stride;
    grad_x += rows.grad_x_stride;
    gradient += rows.gradient_stride;
  }
  for (int s = 0; s < kSteps; ++s) write_lanes(rows.sum + channel + s * kStep<T>, sum[s]);
}

template <bool kNonTemporal, bool kDirect, class T>
void norm_gradients(const NormGradRows<T>& rows, int64_t head_dim) {
  constexpr int64_t k = kStep<T>;
  int64_t c = 0;
  if constexpr (kDirect) {
    for (; c + 4 * k <= head_dim; c += 4 * k) norm_gradients<kNonTemporal, true, true, 4>(rows, c, k);
    for (; c + 2 * k <= head_dim; c += 2 * k) norm_gradients<kNonTemporal, true, true, 2>(rows, c, k);
  }
  for (; c + k <= head_dim; c += k) norm_gradients<kNonTemporal, kDirect, true, 1>(rows, c, k);
  if (c < head_dim) norm_gradients<kNonTemporal, kDirect, false, 1>(rows, c, head_dim - c);
}

// corrections[h] = norm_correction of head h, for all heads of `rows`. prefetch: Plan::prefetch_input.
template <bool kDirect, class T>
void correct_heads(const NormGradRows<T> rows, int64_t head_dim, int64_t prefetch, Arithmetic<T>* corrections) {
  using A = Arithmetic<T>;
  sum_heads<T, kDirect>(
      rows.heads, head_dim,
      [=](int64_t h) {
        const T* x = rows.x + h * rows.x_stride;
        prefetch_row(x, head_dim * sizeof(T), prefetch);
        const A *gradient = rows.gradient + h * rows.gradient_stride, *weight = rows.weight;
        return [=, x_channel = kDirect ? 1 : rows.x_channel, in_run_order = rows.in_run_order](auto full, int64_t c,
                                                                                               int64_t n) {
          const auto [v, g] =
              read_with_gradient<kDirect, full.value>(x + c * x_channel, x_channel, gradient + c, n, in_run_order);
          return g * read_lanes<Lanes<T>>(weight + c) * v;
        };
      },
      corrections);
  for (int64_t h = 0; h < rows.heads; ++h) {
    corrections[h] = norm_correction(corrections[h], static_cast<A>(head_dim), rows.inv_rms[h]);
  }
}

}  // namespace
}  // namespace rope::cpu
