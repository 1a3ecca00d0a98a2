// The derivatives of norm and rotation with one element per access, and the sum over blocks of tokens.
#pragma once

#include "cuda/norm_elements.cuh"
#include "cuda/norm_grad.cuh"
#include "cuda/norm_plan.h"

namespace rope::cuda {

// The derivatives of one head, channel by channel.
template <class T>
struct HeadGradient {
  using A = Arithmetic<T>;
  const NormGradParams& p;
  const RotatedTensor& grad;
  const Norm& norm;
  const Strides& x_stride;
  HeadRotation<T> rotation;
  const T *g, *x;
  A r;

  ROPE_INLINE_MEMBER HeadGradient(const NormGradParams& p, const HeadIndex& head)
      : p(p),
        grad(p.x[head.tensor]),
        norm(p.norm[head.tensor]),
        x_stride(p.of_norm[head.tensor].x_stride),
        rotation(p, head),
        g(first_channel(static_cast<const T*>(grad.in), grad.in_stride, head)),
        x(first_channel(static_cast<const T*>(p.of_norm[head.tensor].x), x_stride, head)),
        r(*rope::at<A>(norm.inv_rms, (head.batch * p.seqlen + head.token) * grad.heads + head.head)) {}

  ROPE_INLINE_MEMBER A read_g(int64_t channel) const { return widened(g[channel * grad.in_stride.channel]); }
  ROPE_INLINE_MEMBER A read_x(int64_t channel) const { return widened(x[channel * x_stride.channel]); }

  // The gradient of a pair of normalized channels.
  ROPE_INLINE_MEMBER Pair<A> of_pair(int64_t pair) const {
    const Pair<int64_t> from = channels_of(p, p.pairing, pair);
    const Pair<A> y = rotation.rotated({read_g(from.first), read_g(from.second)}, pair);
    if (!p.round_weighted) return y;
    return {widened(narrowed<T>(y.first)), widened(narrowed<T>(y.second))};
  }

  // The gradient of a normalized channel.
  ROPE_INLINE_MEMBER A of_channel(int64_t channel) const {
    const int64_t i = channel - p.rotary_offset;
    if (i < 0 || i >= 2 * p.pairs) return read_g(channel);
    const Pairing& pairing = p.out_pairing;
    const bool neighbours = pairing.step == 2, second = neighbours ? i % 2 : i >= pairing.partner;
    const Pair<A> y = of_pair(neighbours ? i / 2 : second ? i - pairing.partner : i);
    return second ? y.second : y.first;
  }

  ROPE_INLINE_MEMBER A of_x(A gradient, int64_t channel, A correction) const {
    return norm_gradient(gradient * weight_at<A>(norm, channel), read_x(channel), correction, r);
  }
};

// One thread of a thread block, which processes kBlockTokens tokens of one tensor. The gradient of the weight comes
// first, channel by channel, because the gradient of x may overwrite the gradient of the result. The gradient of x
// follows, one warp per head, in two steps, as in NormElements.
template <class T>
struct NormGradElements {
  using A = Arithmetic<T>;
  const NormGradParams& p;
  int tensor, thread;
  int64_t first_token, first_head, heads;  // first_head, heads: of the slice

  ROPE_INLINE_MEMBER NormGradElements(const NormGradParams& p, int tensor, int64_t block, int slice, int slices,
                                      int thread)
      : p(p), tensor(tensor), thread(thread), first_token(block * kBlockTokens) {
    const int64_t of_slice = quotient_up(p.x[tensor].heads, slices);
    first_head = slice * of_slice;
    heads = p.x[tensor].heads - first_head < of_slice ? p.x[tensor].heads - first_head : of_slice;
  }

  ROPE_INLINE_MEMBER bool has(int64_t token) const { return token < p.batch * p.seqlen; }

  ROPE_INLINE_MEMBER HeadIndex head_at(int64_t token, int64_t head) const {
    return {tensor, token / p.seqlen, token % p.seqlen, head};
  }

  ROPE_INLINE_MEMBER void add_weights() const {
    const NormGradTensor& of_norm = p.of_norm[tensor];
    const int64_t head_dim = p.x[tensor].head_dim;
    if (!of_norm.block_sums) return;
    for (int64_t channel = thread; channel < head_dim; channel += kWarps * kSumLanes) {
      TreeOfNeighbours<A, 5> tree;
      A sum = 0;
      for (int i = 0; i < kBlockTokens; ++i) {
        sum = tree.add(has(first_token + i) ? sum_at(first_token + i, channel) : A(0));
      }
      *rope::at<A>(of_norm.block_sums, first_token / kBlockTokens * head_dim + channel) = sum;
    }
  }

  // The gradient of the weight of a channel at one token, summed over the heads.
  ROPE_INLINE_MEMBER A sum_at(int64_t token, int64_t channel) const {
    A sum = 0;
    for (int64_t h = 0; h < p.x[tensor].heads; ++h) {
      const HeadIndex head = head_at(token, h);
      const HeadGradient<T> gradient(p, head);
      if (gradient.rotation.copied()) return 0;
      sum = sum + weight_gradient(gradient.of_channel(channel), gradient.read_x(channel), gradient.r);
    }
    return sum;
  }

  // ---- head by head, `steps` of them for each warp ----

  ROPE_INLINE_MEMBER int64_t steps() const {
    return p.x[tensor].out && heads > 0 ? quotient_up(kBlockTokens * heads, kWarps) : 0;
  }

  ROPE_INLINE_MEMBER bool head_of(int64_t step, HeadIndex* to) const {
    const int64_t i = step * kWarps + thread / kSumLanes, token = first_token + i / heads;
    *to = head_at(token, first_head + i % heads);
    return i < kBlockTokens * heads && has(token);
  }

  ROPE_INLINE_MEMBER A products(int64_t step) const {
    HeadIndex head;
    if (!head_of(step, &head)) return 0;
    const HeadGradient<T> gradient(p, head);
    if (gradient.rotation.copied()) return 0;
    return sum_of_channels<A>(thread % kSumLanes, p.x[tensor].head_dim, [&](int64_t channel) {
      return gradient.of_channel(channel) * weight_at<A>(gradient.norm, channel) * gradient.read_x(channel);
    });
  }

  ROPE_INLINE_MEMBER void finish(int64_t step, A sum_of_products) const {
    HeadIndex head;
    if (!head_of(step, &head)) return;
    const RotatedTensor& grad = p.x[tensor];
    const HeadGradient<T> gradient(p, head);
    T* out = first_channel(static_cast<T*>(grad.out), grad.out_stride, head);
    const auto write = [&](int64_t channel, T value) { out[channel * grad.out_stride.channel] = value; };
    const int lane = thread % kSumLanes;
    if (gradient.rotation.copied()) {
      for (int64_t c = lane; c < grad.head_dim; c += kSumLanes) write(c, gradient.g[c * grad.in_stride.channel]);
      return;
    }
    const A correction = norm_correction(sum_of_products, static_cast<A>(grad.head_dim), gradient.r);
    for (int64_t pair = lane; pair < p.pairs; pair += kSumLanes) {
      const Pair<A> y = gradient.of_pair(pair);
      const Pair<int64_t> to = channels_of(p, p.out_pairing, pair);
      write(to.first, narrowed<T>(gradient.of_x(y.first, to.first, correction)));
      write(to.second, narrowed<T>(gradient.of_x(y.second, to.second, correction)));
    }
    for (int64_t i = lane; i < grad.head_dim - 2 * p.pairs; i += kSumLanes) {
      const int64_t channel = channel_outside(p, i);
      write(channel, narrowed<T>(gradient.of_x(gradient.read_g(channel), channel, correction)));
    }
  }
};

// ---- the sum over blocks of tokens ----

// The sum of a row of blocks for a channel of tensor t; 0 if there is no such channel.
template <class A>
ROPE_INLINE A sum_of_row(const BlockSums& s, int t, int64_t channel, int row) {
  constexpr int kRun = 8;  // loads in flight
  if (channel >= s.head_dim[t]) return 0;
  TreeOfNeighbours<A, 24> tree;  // enough for kMostBlocks blocks
  A sum = 0;
  for (int64_t first = row * s.row_blocks; first < (row + 1) * s.row_blocks; first += kRun) {
    A run[kRun];
    ROPE_UNROLL
    for (int i = 0; i < kRun; ++i) {
      const int64_t block = first + i;
      run[i] = block < s.blocks ? *rope::at<A>(s.sums[t], block * s.head_dim[t] + channel) : A(0);
    }
    sum = tree.add(((run[0] + run[1]) + (run[2] + run[3])) + ((run[4] + run[5]) + (run[6] + run[7])));
  }
  return sum;
}

// Writes the sum of a channel, once all threads of the block have written their row sums. rows: the column of the
// channel in the (kSumRows, kSumChannels) row sums.
template <class A>
ROPE_INLINE void add_rows(const BlockSums& s, int t, int64_t channel, const A* rows) {
  static_assert(kSumRows == kBlockTokens);
  if (channel >= s.head_dim[t]) return;
  *rope::at<A>(s.to[t], channel) = sum_of_tokens<A>([&](int row) { return rows[row * kSumChannels]; });
}

}  // namespace rope::cuda
