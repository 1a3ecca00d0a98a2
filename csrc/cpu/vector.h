// Vectors of the instruction set that this file is compiled for: loads, stores, and shuffles of lanes. The vector types
// of GCC and clang have +, - and *, so that core/math.h works on them unchanged.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <type_traits>
#include <utility>

#include "core/dtype.h"
#include "core/math.h"

namespace rope::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T, int kBytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(kBytes)));
};
template <class T, int kBytes = kVectorBytes>
using Vector = typename VectorOf<T, kBytes>::type;

using Words = Vector<uint32_t>;  // the bits of Vector<float>, or two 16-bit elements per lane

// ---- memory ----

// kFull: the whole vector; `bytes` is ignored. Else only the first `bytes` bytes are read (others: 0) or written.
template <class V, bool kFull>
ROPE_INLINE V read(const void* from, int64_t bytes) {
  V v{};
  if constexpr (kFull) {
    memcpy(&v, from, sizeof(v));
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  } else if constexpr (sizeof(V) == 64) {
    return bits_as<V>(_mm512_maskz_loadu_epi8(_bzhi_u64(~0ull, bytes), from));
  } else if constexpr (sizeof(V) == 32) {
    return bits_as<V>(_mm256_maskz_loadu_epi8(static_cast<__mmask32>(_bzhi_u32(~0u, bytes)), from));
#endif
  } else {
    memcpy(&v, from, bytes);
  }
  return v;
}

template <bool kFull, class V>
ROPE_INLINE void write(void* to, V v, int64_t bytes) {
  if constexpr (kFull) {
    memcpy(to, &v, sizeof(v));
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  } else if constexpr (sizeof(V) == 64) {
    _mm512_mask_storeu_epi8(to, _bzhi_u64(~0ull, bytes), bits_as<__m512i>(v));
  } else if constexpr (sizeof(V) == 32) {
    _mm256_mask_storeu_epi8(to, static_cast<__mmask32>(_bzhi_u32(~0u, bytes)), bits_as<__m256i>(v));
#endif
  } else {
    memcpy(to, &v, bytes);
  }
}

// A non-temporal store, which bypasses the caches; `to` must be aligned to the size of V. fence_non_temporal_stores()
// must precede reads by another thread.
template <class V>
ROPE_INLINE void write_non_temporal(void* to, V v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) return _mm512_stream_si512(static_cast<__m512i*>(to), bits_as<__m512i>(v));
#endif
#if defined(__AVX__)
  if constexpr (sizeof(V) == 32) return _mm256_stream_si256(static_cast<__m256i*>(to), bits_as<__m256i>(v));
#endif
#if defined(__x86_64__)
  if constexpr (sizeof(V) == 16) return _mm_stream_si128(static_cast<__m128i*>(to), bits_as<__m128i>(v));
#endif
  write<true>(to, v, sizeof(v));
}

ROPE_INLINE void fence_non_temporal_stores() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// ---- order of lanes ----

template <class V>
constexpr int kLanes = sizeof(V) / sizeof(V{}[0]);

// Interleaving stays within blocks of this many lanes: a whole vector, except for 32-byte vectors, where it is half,
// because moving lanes between the halves takes twice the instructions.
template <class V>
constexpr int kBlockLanes = sizeof(V) == 32 ? kLanes<V> / 2 : kLanes<V>;

// Lane i of the result is lane index(i) of a and b, concatenated.
template <class V, class Index, int... i>
ROPE_INLINE V shuffle(V a, V b, Index index, std::integer_sequence<int, i...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, index(i)...);
#else
  using I = std::conditional_t<sizeof(V{}[0]) == 8, int64_t, std::conditional_t<sizeof(V{}[0]) == 4, int32_t, int16_t>>;
  return __builtin_shuffle(a, b, Vector<I, sizeof(V)>{static_cast<I>(index(i))...});
#endif
}
template <class V, class Index>
ROPE_INLINE V shuffle(V a, V b, Index index) {
  return shuffle(a, b, index, std::make_integer_sequence<int, kLanes<V>>{});
}

// (a0 b0 a1 b1 ..) in two vectors -> the a, the b; lanes in interleaved order (see elements.h).
template <class V>
ROPE_INLINE Pair<V> deinterleave(V low, V high) {
  constexpr int lanes = kLanes<V>, block = kBlockLanes<V>, half = block / 2;
  const auto first = [](int i) { return (i % block < half ? 0 : lanes) + i / block * block + i % half * 2; };
  const auto second = [first](int i) { return first(i) + 1; };
  return {shuffle(low, high, first), shuffle(low, high, second)};
}
// The inverse of deinterleave.
template <class V>
ROPE_INLINE Pair<V> interleave(V a, V b) {
  constexpr int lanes = kLanes<V>, block = kBlockLanes<V>, half = block / 2;
  const auto first = [](int i) { return (i % 2 ? lanes : 0) + i / block * block + i % block / 2; };
  const auto second = [first](int i) { return first(i) + half; };
  return {shuffle(a, b, first), shuffle(a, b, second)};
}

// Swaps lanes 0 and 1, 2 and 3 ..
template <class V>
ROPE_INLINE V exchange_neighbours(V v) {
  return shuffle(v, v, [](int i) { return i ^ 1; });
}

// Swaps the middle quarters of a 32-byte vector, nothing in others: interleaved order -> pair order, and back.
template <class V>
ROPE_INLINE V exchange_middle(V v) {
  constexpr int block = kBlockLanes<V>, half = block / 2;
  if constexpr (block == kLanes<V>) {
    return v;
  } else {
    return shuffle(v, v, [](int i) { return i / half == 1 ? i + half : i / half == 2 ? i - half : i; });
  }
}

}  // namespace
}  // namespace rope::cpu
