// Vectors of the instruction set this file is compiled for: memory to arithmetic type and back, a vector at a time.
// Arithmetic itself is the compiler's (GCC and clang vectors have +, - and *), so core/math.h serves vectors as it is.
// Promise: the bits of core/dtype.h, whichever instructions do it; but for the payload of NaN.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <type_traits>

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

using Words = Vector<uint32_t>;  // the bits of Vector<float>, or twice as many elements of 16 bits

// ---- memory ----

// `bytes` counts when !kFull (a tail): then only that many are read, the others are 0; or only that many are written.
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

// Past the caches; `to` is aligned to the size of V. A fence follows before another thread may read it.
template <class V>
ROPE_INLINE void stream(void* to, V v) {
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

ROPE_INLINE void fence_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// ---- order of lanes ----

#if defined(__clang__) || __GNUC__ >= 12
#define ROPE_SHUFFLE(V, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define ROPE_SHUFFLE(V, a, b, ...) __builtin_shuffle(a, b, Vector<IndexOf<V>, sizeof(V)>{__VA_ARGS__})
template <class V>
using IndexOf =
    std::conditional_t<sizeof(V{}[0]) == 8, int64_t, std::conditional_t<sizeof(V{}[0]) == 4, int32_t, int16_t> >;
#endif

// (a0 b0 a1 b1 ..) as two vectors -> the a, the b; and `interleave` back. In the order of the pairs, but with 32-byte
// vectors: there lanes stay in their half of the vector (else twice the instructions), in the order that `swap_middle`
// makes.
template <class V>
ROPE_INLINE Pair<V> deinterleave(V low, V high) {
  constexpr int n = sizeof(V) / sizeof(low[0]);
  if constexpr (n == 2) return {ROPE_SHUFFLE(V, low, high, 0, 2), ROPE_SHUFFLE(V, low, high, 1, 3)};
  if constexpr (n == 4 && sizeof(V) == 32)
    return {ROPE_SHUFFLE(V, low, high, 0, 4, 2, 6), ROPE_SHUFFLE(V, low, high, 1, 5, 3, 7)};
  if constexpr (n == 4 && sizeof(V) == 16)
    return {ROPE_SHUFFLE(V, low, high, 0, 2, 4, 6), ROPE_SHUFFLE(V, low, high, 1, 3, 5, 7)};
  if constexpr (n == 8 && sizeof(V) == 32) {
    return {ROPE_SHUFFLE(V, low, high, 0, 2, 8, 10, 4, 6, 12, 14),
            ROPE_SHUFFLE(V, low, high, 1, 3, 9, 11, 5, 7, 13, 15)};
  }
  if constexpr (n == 8 && sizeof(V) == 64) {
    return {ROPE_SHUFFLE(V, low, high, 0, 2, 4, 6, 8, 10, 12, 14),
            ROPE_SHUFFLE(V, low, high, 1, 3, 5, 7, 9, 11, 13, 15)};
  }
  if constexpr (n == 16) {
    return {ROPE_SHUFFLE(V, low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
            ROPE_SHUFFLE(V, low, high, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)};
  }
}
template <class V>
ROPE_INLINE Pair<V> interleave(V a, V b) {
  constexpr int n = sizeof(V) / sizeof(a[0]);
  if constexpr (n == 2) return {ROPE_SHUFFLE(V, a, b, 0, 2), ROPE_SHUFFLE(V, a, b, 1, 3)};
  if constexpr (n == 4 && sizeof(V) == 32)
    return {ROPE_SHUFFLE(V, a, b, 0, 4, 2, 6), ROPE_SHUFFLE(V, a, b, 1, 5, 3, 7)};
  if constexpr (n == 4 && sizeof(V) == 16)
    return {ROPE_SHUFFLE(V, a, b, 0, 4, 1, 5), ROPE_SHUFFLE(V, a, b, 2, 6, 3, 7)};
  if constexpr (n == 8 && sizeof(V) == 32) {
    return {ROPE_SHUFFLE(V, a, b, 0, 8, 1, 9, 4, 12, 5, 13), ROPE_SHUFFLE(V, a, b, 2, 10, 3, 11, 6, 14, 7, 15)};
  }
  if constexpr (n == 8 && sizeof(V) == 64) {
    return {ROPE_SHUFFLE(V, a, b, 0, 8, 1, 9, 2, 10, 3, 11), ROPE_SHUFFLE(V, a, b, 4, 12, 5, 13, 6, 14, 7, 15)};
  }
  if constexpr (n == 16) {
    return {ROPE_SHUFFLE(V, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
            ROPE_SHUFFLE(V, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)};
  }
}

// Exchanges the middle quarters of a 32-byte vector: the order of deinterleave <-> the order of the pairs.
template <class V>
ROPE_INLINE V swap_middle(V v) {
  if constexpr (sizeof(V) != 32) return v;
  if constexpr (sizeof(V) == 32 && sizeof(v[0]) == 8) return ROPE_SHUFFLE(V, v, v, 0, 2, 1, 3);
  if constexpr (sizeof(V) == 32 && sizeof(v[0]) == 4) return ROPE_SHUFFLE(V, v, v, 0, 1, 4, 5, 2, 3, 6, 7);
}

}  // namespace
}  // namespace rope::cpu
