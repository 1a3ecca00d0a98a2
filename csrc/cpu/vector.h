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
    std::conditional_t<sizeof(V{}[0]) == 8, int64_t, std::conditional_t<sizeof(V{}[0]) == 4, int32_t, int16_t>>;
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

// ---- element types ----

// What a vector of channels is computed in. Of 16-bit types it can be two vectors, channels 0, 2, 4 .. and 1, 3, 5 ..:
// as they come out of 32-bit words by a shift and a mask, without moving a lane.
template <class V>
struct EvenOdd {
  V even, odd;
};
template <class V>
ROPE_INLINE EvenOdd<V> operator+(EvenOdd<V> a, EvenOdd<V> b) {
  return {a.even + b.even, a.odd + b.odd};
}
template <class V>
ROPE_INLINE EvenOdd<V> operator-(EvenOdd<V> a, EvenOdd<V> b) {
  return {a.even - b.even, a.odd - b.odd};
}
template <class V>
ROPE_INLINE EvenOdd<V> operator-(EvenOdd<V> a) {
  return {-a.even, -a.odd};
}
template <class V>
ROPE_INLINE EvenOdd<V> operator*(EvenOdd<V> a, EvenOdd<V> b) {
  return {a.even * b.even, a.odd * b.odd};
}

// Neighbouring vectors of (a b a b ..) -> the a, the b: here each word already holds one of both.
template <class V>
ROPE_INLINE Pair<EvenOdd<V>> deinterleave(EvenOdd<V> low, EvenOdd<V> high) {
  return {{low.even, high.even}, {low.odd, high.odd}};
}
template <class V>
ROPE_INLINE Pair<EvenOdd<V>> interleave(EvenOdd<V> a, EvenOdd<V> b) {
  return {{a.even, b.even}, {a.odd, b.odd}};
}

// The order of the lanes that interleaved rows give <-> the order of the pairs.
template <class V>
ROPE_INLINE V interleaved_order(V v) {
  return swap_middle(v);
}
template <class V>
ROPE_INLINE EvenOdd<V> interleaved_order(EvenOdd<V> v) {
  return v;
}
// The order of the lanes that runs of channels give <-> the order of the pairs.
template <class V>
ROPE_INLINE V run_order(V v) {
  return v;
}
template <class V>
ROPE_INLINE EvenOdd<V> run_order(EvenOdd<V> in_order) {
  const Pair<V> sorted = deinterleave(in_order.even, in_order.odd);
  return {swap_middle(sorted.first), swap_middle(sorted.second)};
}
template <class V>
ROPE_INLINE V order_of_run(V v) {
  return v;
}
template <class V>
ROPE_INLINE EvenOdd<V> order_of_run(EvenOdd<V> v) {
  const Pair<V> in_order = interleave(swap_middle(v.even), swap_middle(v.odd));
  return {in_order.first, in_order.second};
}

// kStep<T> numbers of arithmetic type in memory. (A memcpy of EvenOdd as a whole makes gcc 12 go through the stack.)
template <class L, class A>
ROPE_INLINE L read_lanes(const A* from) {
  if constexpr (std::is_same_v<L, Vector<A>>) {
    return read<L, true>(from, 0);
  } else {
    return {read<Vector<A>, true>(from, 0), read<Vector<A>, true>(from + kVectorBytes / sizeof(A), 0)};
  }
}
template <class A>
ROPE_INLINE void write_lanes(A* to, Vector<A> v) {
  write<true>(to, v, 0);
}
template <class A>
ROPE_INLINE void write_lanes(A* to, EvenOdd<Vector<A>> v) {
  write<true>(to, v.even, 0);
  write<true>(to + kVectorBytes / sizeof(A), v.odd, 0);
}

// Packed: elements as they lie in memory, one vector of them; Lanes: what they are computed in.
template <class T>
struct Elements {  // float, double
  using Packed = Vector<T>;
  using Lanes = Vector<T>;
  ROPE_INLINE Lanes unpack(Packed v) { return v; }
  ROPE_INLINE Packed pack(Lanes v) { return v; }
};

template <>
struct Elements<BFloat16> {
  using Packed = Words;
  using Lanes = EvenOdd<Vector<float>>;
  ROPE_INLINE Lanes unpack(Packed v) {
    return {bits_as<Vector<float>>(v << 16), bits_as<Vector<float>>(v & 0xffff0000u)};
  }
  // Every NaN here has zeros in its low half: those of x are widened, those of the tables are made so (load_entries).
  ROPE_INLINE Packed pack(Lanes v) {
#if defined(__AVX512BF16__)
    // The instruction flushes denormals: vectors with one (or with a zero, which costs less to tell) go the other way.
    const __m512i exponents = _mm512_set1_epi32(0x7f800000);
    const __mmask16 normal = _mm512_mask_test_epi32_mask(_mm512_test_epi32_mask(bits_as<__m512i>(v.even), exponents),
                                                         bits_as<__m512i>(v.odd), exponents);
    if (__builtin_expect(normal == 0xffff, true)) {
      const auto halves = bits_as<Vector<uint16_t>>(_mm512_cvtne2ps_pbh(v.odd, v.even));
      return bits_as<Words>(ROPE_SHUFFLE(Vector<uint16_t>, halves, halves, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6,
                                         22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
    }
#endif
    return bfloat16_rounded(bits_as<Words>(v.even)) >> 16 | (bfloat16_rounded(bits_as<Words>(v.odd)) & 0xffff0000u);
  }
};

template <>
struct Elements<Float16> {
#if defined(__AVX512F__)
  using Packed = __m256i;
  using Lanes = Vector<float>;
  ROPE_INLINE Lanes unpack(Packed v) { return _mm512_cvtph_ps(v); }
  ROPE_INLINE Packed pack(Lanes v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__F16C__)
  using Packed = __m128i;
  using Lanes = Vector<float>;
  ROPE_INLINE Lanes unpack(Packed v) { return _mm256_cvtph_ps(v); }
  ROPE_INLINE Packed pack(Lanes v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
#else
  using Packed = Words;
  using Lanes = EvenOdd<Vector<float>>;
  ROPE_INLINE Vector<float> widened(Words low) { return bits_as<Vector<float>>(fp32_of_float16<Vector<float>>(low)); }
  ROPE_INLINE Words narrowed(Vector<float> v) { return float16_of_fp32<Vector<float>>(bits_as<Words>(v)); }
  ROPE_INLINE Lanes unpack(Packed v) { return {widened(v & 0xffffu), widened(v >> 16)}; }
  ROPE_INLINE Packed pack(Lanes v) { return narrowed(v.even) | narrowed(v.odd) << 16; }
#endif
};

// Channels of one Packed: pairs that are rotated at once.
template <class T>
constexpr int64_t kStep = sizeof(typename Elements<T>::Packed) / sizeof(T);

}  // namespace
}  // namespace rope::cpu
