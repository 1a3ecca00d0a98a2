// Sums over a head, in the tree order of core/norm.h.
#pragma once

#include "core/norm.h"

namespace rope::cuda {

// `value` of lane (this lane ^ mask). All lanes of the warp must call it together.
#if defined(__CUDACC__) || defined(ROPE_CUDA_STAND_IN)
template <class A>
ROPE_INLINE A exchanged(A value, int mask) {
#if defined(__CUDACC__) && !defined(__CUDA_ARCH__)
  return value;  // nvcc also compiles kernels for the host, which never runs them
#else
  return __shfl_xor_sync(0xffffffffu, value, mask);
#endif
}
#endif

// The sum of lanes * kWidth >= kSumLanes numbers, of which each lane has kWidth consecutive ones. `lanes` is a power of
// two; every lane of the aligned group receives the sum. V: A on a GPU; in the emulation, one A for each lane of a
// warp.
template <int kWidth, class V>
ROPE_INLINE V sum_of_lanes(V (&q)[kWidth], int lanes) {
  static_assert(kWidth <= kSumLanes);
  for (int step = lanes / 2; step * kWidth >= kSumLanes; step /= 2) {
    ROPE_UNROLL
    for (int i = 0; i < kWidth; ++i) q[i] = q[i] + exchanged(q[i], step);
  }
  ROPE_UNROLL
  for (int count = kWidth / 2; count > 0; count /= 2) {
    ROPE_UNROLL
    for (int i = 0; i < count; ++i) q[i] = q[2 * i] + q[2 * i + 1];
  }
  ROPE_UNROLL
  for (int step = 1; step * kWidth < kSumLanes; step *= 2) q[0] = q[0] + exchanged(q[0], step);
  return q[0];
}

// Sums numbers, which arrive one after another, by a tree of neighbors.
template <class A, int kLevels>
struct TreeOfNeighbours {
  A partial[kLevels];  // [i]: the sum of 2^i numbers, if bit i of count is set
  uint32_t count = 0;

  // Adds a number. Returns the sum of the last 2^i numbers, where i is the number of trailing zeros of the new count.
  ROPE_INLINE_MEMBER A add(A value) {
    const A sum = carry<0>(value);
    ++count;
    return sum;
  }

  // Recursive, so that `partial` stays in registers.
  template <int i>
  ROPE_INLINE_MEMBER A carry(A value) {
    if constexpr (i < kLevels) {
      if (count >> i & 1) return carry<i + 1>(partial[i] + value);
      partial[i] = value;
    }
    return value;
  }
};

// The sum of the channels lane, lane + kSumLanes, .. of a head, in tree order. value(channel): the summand.
template <class A, class Value>
ROPE_INLINE A sum_of_channels(int lane, int64_t head_dim, const Value& value) {
  int64_t count = 1;
  while (count * kSumLanes < head_dim) count *= 2;
  // In bit-reversed order of the channels, the tree that adds halves becomes a tree of neighbors.
  TreeOfNeighbours<A, 26> tree;  // head_dim is below 2^30
  A sum = 0;
  for (int64_t added = 0, i = 0; added < count; ++added) {
    const int64_t channel = lane + i * kSumLanes;
    sum = tree.add(channel < head_dim ? value(channel) : A(0));
    int64_t bit = count / 2;
    for (; i & bit; bit /= 2) i ^= bit;
    i |= bit;
  }
  return sum;
}

}  // namespace rope::cuda
