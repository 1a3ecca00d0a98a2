// Rows, the rotated channels of one head at one token: their addresses, and loads and stores of their pairs.
#pragma once

#include <type_traits>

#include "core/params.h"
#include "cpu/elements.h"
#include "cpu/plan.h"

namespace rope::cpu {
namespace {

// The distance in elements from the first row of a tensor to another row.
ROPE_INLINE int64_t row_offset(const Strides& s, int64_t batch, int64_t token, int64_t head) {
  return batch * s.batch + token * s.token + head * s.head;
}

// Prefetches the `bytes` bytes that are `distance` bytes past `row`; distance 0: does nothing.
ROPE_INLINE void prefetch_row(const void* row, int64_t bytes, int64_t distance) {
  if (!distance) return;
  const char* next = static_cast<const char*>(row) + distance;
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(next + at);
}

// Pair `begin` of head 0 of a token, and the strides from there.
template <class T>
struct TokenRow {
  T* data;
  Pairing pairing;  // in elements
  int64_t head_stride;
};

template <class T, class Void>
TokenRow<T> token_row(int64_t rotary_offset, Void* data, const Strides& s, Pairing pairing, int64_t batch,
                      int64_t token, int64_t begin) {
  const int64_t channel = rotary_offset + begin * pairing.step;
  return {at<std::remove_const_t<T>>(data, batch * s.batch + token * s.token + channel * s.channel),
          {pairing.step * s.channel, pairing.partner * s.channel},
          s.head};
}

// `pairing`, with all that kAccess implies, which is everything but the distance between halves, as constants.
template <Access kAccess>
ROPE_INLINE Pairing known(Pairing pairing) {
  if (kAccess == Access::kHalf) return {1, pairing.partner};
  if (kAccess == Access::kInterleaved) return {2, 1};
  return pairing;
}

// Calls function(access) with the access as a compile-time constant.
template <class Function>
void with_access(Access access, const Function& function) {
  if (access == Access::kHalf) {
    function(std::integral_constant<Access, Access::kHalf>{});
  } else if (access == Access::kInterleaved) {
    function(std::integral_constant<Access, Access::kInterleaved>{});
  } else {
    function(std::integral_constant<Access, Access::kAny>{});
  }
}

template <class T>
using Lanes = typename Elements<T>::Lanes;

// Loads n <= kStep pairs of contiguous channels in memory order; kFull: n == kStep.
template <bool kFull, class T>
ROPE_INLINE Pair<Lanes<T>> load_channels(const T* row, int64_t n) {
  using E = Elements<T>;
  constexpr int64_t size = sizeof(T);
  const int64_t low = 2 * n < kStep<T> ? 2 * n : kStep<T>;
  return {E::unpack(read<typename E::Packed, kFull>(row, low * size)),
          E::unpack(read<typename E::Packed, kFull>(row + kStep<T>, (2 * n - low) * size))};
}

// Loads n <= kStep pairs; kFull: n == kStep. Lanes are in interleaved order with Access::kInterleaved, else in run
// order; store_pairs expects the same.
template <Access kAccess, bool kFull, class T>
ROPE_INLINE Pair<Lanes<T>> load_pairs(const T* row, Pairing pairing, int64_t n) {
  using E = Elements<T>;
  using Packed = typename E::Packed;
  constexpr int64_t size = sizeof(T);
  if constexpr (kAccess == Access::kHalf) {
    return {E::unpack(read<Packed, kFull>(row, n * size)),
            E::unpack(read<Packed, kFull>(row + pairing.partner, n * size))};
  } else if constexpr (kAccess == Access::kInterleaved) {
    const auto x = load_channels<kFull>(row, n);
    return deinterleave(x.first, x.second);
  } else {
    const Access access = access_of(pairing);
    if (access == Access::kHalf) return load_pairs<Access::kHalf, kFull>(row, pairing, n);
    if (access == Access::kInterleaved) {
      const auto x = load_pairs<Access::kInterleaved, kFull>(row, pairing, n);
      return {run_from_pair_order(pair_from_interleaved_order(x.first)),
              run_from_pair_order(pair_from_interleaved_order(x.second))};
    }
    T first[kStep<T>] = {}, second[kStep<T>] = {};
    for (int64_t i = 0; i < n; ++i) {
      first[i] = row[i * pairing.step];
      second[i] = row[i * pairing.step + pairing.partner];
    }
    return {E::unpack(read<Packed, true>(first, 0)), E::unpack(read<Packed, true>(second, 0))};
  }
}

template <bool kFull, bool kNonTemporal, class V>
ROPE_INLINE void put(void* to, V v, int64_t bytes) {
  if constexpr (kFull && kNonTemporal) {
    write_non_temporal(to, v);
  } else {
    write<kFull>(to, v, bytes);
  }
}

template <bool kFull, bool kNonTemporal, class T>
ROPE_INLINE void store_channels(Pair<Lanes<T>> y, T* row, int64_t n) {
  using E = Elements<T>;
  constexpr int64_t size = sizeof(T);
  const int64_t low = 2 * n < kStep<T> ? 2 * n : kStep<T>;
  put<kFull, kNonTemporal>(row, E::pack(y.first), low * size);
  put<kFull, kNonTemporal>(row + kStep<T>, E::pack(y.second), (2 * n - low) * size);
}

template <Access kAccess, bool kFull, bool kNonTemporal, class T>
ROPE_INLINE void store_pairs(Pair<Lanes<T>> y, T* row, Pairing pairing, int64_t n) {
  using E = Elements<T>;
  constexpr int64_t size = sizeof(T);
  if constexpr (kAccess == Access::kHalf) {
    put<kFull, kNonTemporal>(row, E::pack(y.first), n * size);
    put<kFull, kNonTemporal>(row + pairing.partner, E::pack(y.second), n * size);
  } else if constexpr (kAccess == Access::kInterleaved) {
    store_channels<kFull, kNonTemporal>(interleave(y.first, y.second), row, n);
  } else {
    const Access access = access_of(pairing);
    if (access == Access::kHalf) return store_pairs<Access::kHalf, kFull, false>(y, row, pairing, n);
    if (access == Access::kInterleaved) {
      const Pair<Lanes<T>> v = {interleaved_from_pair_order(pair_from_run_order(y.first)),
                                interleaved_from_pair_order(pair_from_run_order(y.second))};
      return store_pairs<Access::kInterleaved, kFull, false>(v, row, pairing, n);
    }
    T first[kStep<T>], second[kStep<T>];
    write<true>(first, E::pack(y.first), 0);
    write<true>(second, E::pack(y.second), 0);
    for (int64_t i = 0; i < n; ++i) {
      row[i * pairing.step] = first[i];
      row[i * pairing.step + pairing.partner] = second[i];
    }
  }
}

// Calls function(full, i, m) for each step of n pairs, which is the pairs i to i + m - 1. full: m == kStep<T>, as a
// compile-time constant.
template <class T, class Function>
ROPE_INLINE void for_each_step(int64_t n, const Function& function) {
  int64_t i = 0;
  for (; i + kStep<T> <= n; i += kStep<T>) function(std::true_type{}, i, kStep<T>);
  if (i < n) function(std::false_type{}, i, n - i);
}

}  // namespace
}  // namespace rope::cpu
