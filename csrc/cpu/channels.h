// Loads and stores channels in the arithmetic type, with lanes in run order (elements.h).
#pragma once

#include <type_traits>

#include "cpu/rows.h"

namespace rope::cpu {
namespace {

template <class L, class A>
ROPE_INLINE L broadcast(A value) {
  if constexpr (std::is_same_v<L, Vector<A>>) {
    return L{} + value;
  } else {
    return {Vector<A>{} + value, Vector<A>{} + value};
  }
}

// Reads n <= kStep numbers of the arithmetic type into run order.
template <class T, bool kFull = true, class A>
ROPE_INLINE Lanes<T> read_run(const A* from, int64_t n = kStep<T>) {
  return run_from_pair_order(read_lanes<Lanes<T>, kFull>(from, n));
}

// Reads n <= kStep weights of a norm into run order. For 16-bit elements, the low half of each NaN becomes zero: see
// bfloat16_rounded.
template <class T, bool kFull = true>
ROPE_INLINE Lanes<T> read_weights(const Arithmetic<T>* from, int64_t n = kStep<T>) {
  const auto v = read_run<T, kFull>(from, n);
  if constexpr (sizeof(T) == 2) return without_payload(v);
  return v;
}

// The inverse of read_run.
template <bool kFull, class T, class A>
ROPE_INLINE void write_run(Lanes<T> run, A* to, int64_t n) {
  constexpr int64_t size = sizeof(A), lanes = kVectorBytes / size;
  const auto v = pair_from_run_order(run);
  if constexpr (std::is_same_v<Lanes<T>, Vector<A>>) {
    write<kFull>(to, v, n * size);
  } else {
    const int64_t low = n < lanes ? n : lanes;
    write<kFull>(to, v.even, low * size);
    write<kFull>(to + lanes, v.odd, (n - low) * size);
  }
}

// Reads n <= kStep channels, `stride` elements apart, into run order.
template <class T, bool kFull>
ROPE_INLINE Lanes<T> read_channels(const T* from, int64_t stride, int64_t n) {
  using E = Elements<T>;
  using Packed = typename E::Packed;
  if (stride == 1) return E::unpack(read<Packed, kFull>(from, n * sizeof(T)));
  T gathered[kStep<T>] = {};
  for (int64_t i = 0; i < n; ++i) gathered[i] = from[i * stride];
  return E::unpack(read<Packed, true>(gathered, 0));
}

template <bool kFull, bool kNonTemporal, class T>
ROPE_INLINE void write_channels(Lanes<T> v, T* to, int64_t stride, int64_t n) {
  using E = Elements<T>;
  if (stride == 1) return put<kFull, kNonTemporal>(to, E::pack(v), n * sizeof(T));
  T packed[kStep<T>];
  write<true>(packed, E::pack(v), 0);
  for (int64_t i = 0; i < n; ++i) to[i * stride] = packed[i];
}

// Rounds v to the precision of T.
template <class T>
ROPE_INLINE Lanes<T> rounded(Lanes<T> v) {
  return Elements<T>::unpack(Elements<T>::pack(v));
}

// Loads the weights of 2 * kStep contiguous channels, or of the first 2 * n, in the lane order of load_channels.
template <bool kFull, class T>
ROPE_INLINE Pair<Lanes<T>> load_weight_channels(const Arithmetic<T>* weight, int64_t n) {
  const int64_t low = 2 * n < kStep<T> ? 2 * n : kStep<T>;
  return {read_weights<T, kFull>(weight, low), read_weights<T, kFull>(weight + kStep<T>, 2 * n - low)};
}

// Loads the weights of n <= kStep pairs in the lane order of load_pairs.
template <Access kAccess, bool kFull, class T>
ROPE_INLINE Pair<Lanes<T>> load_weights(const Arithmetic<T>* weight, Pairing channels, int64_t n) {
  if constexpr (kAccess == Access::kHalf) {
    return {read_weights<T, kFull>(weight, n), read_weights<T, kFull>(weight + channels.partner, n)};
  } else if constexpr (kAccess == Access::kInterleaved) {
    const auto w = load_weight_channels<kFull, T>(weight, n);
    return deinterleave(w.first, w.second);
  } else {
    Arithmetic<T> first[kStep<T>] = {}, second[kStep<T>] = {};
    for (int64_t i = 0; i < n; ++i) {
      first[i] = weight[i * channels.step];
      second[i] = weight[i * channels.step + channels.partner];
    }
    return {read_weights<T>(first), read_weights<T>(second)};
  }
}

// Store and read n <= kStep numbers in the scratch memory of norm_grad: whole steps in run order if every run of
// channels begins at a whole step, else in channel order.
template <bool kFull, class T, class A>
ROPE_INLINE void keep_run(Lanes<T> v, A* to, int64_t n, bool in_run_order) {
  in_run_order ? write_lanes(to, v) : write_run<kFull, T>(v, to, n);
}
template <bool kFull, class T, class A>
ROPE_INLINE Lanes<T> read_kept(const A* from, int64_t n, bool in_run_order) {
  return in_run_order ? read_lanes<Lanes<T>>(from) : read_run<T, kFull>(from, n);
}

// store_pairs for numbers of the arithmetic type instead of T.
template <Access kAccess, bool kFull, class T, class A>
ROPE_INLINE void keep_pairs(Pair<Lanes<T>> y, A* row, Pairing pairing, int64_t n, bool in_run_order) {
  if constexpr (kAccess == Access::kHalf) {
    keep_run<kFull, T>(y.first, row, n, in_run_order);
    keep_run<kFull, T>(y.second, row + pairing.partner, n, in_run_order);
  } else if constexpr (kAccess == Access::kInterleaved) {
    const auto channels = interleave(y.first, y.second);
    const int64_t low = 2 * n < kStep<T> ? 2 * n : kStep<T>;
    keep_run<kFull, T>(channels.first, row, low, in_run_order);
    keep_run<kFull, T>(channels.second, row + kStep<T>, 2 * n - low, in_run_order);
  } else {
    A first[kStep<T>], second[kStep<T>];
    write_run<true, T>(y.first, first, n);
    write_run<true, T>(y.second, second, n);
    for (int64_t i = 0; i < n; ++i) {
      row[i * pairing.step] = first[i];
      row[i * pairing.step + pairing.partner] = second[i];
    }
  }
}

}  // namespace
}  // namespace rope::cpu
