// Element types: a vector of them as it lies in memory and as it is computed in, and the way between the two.
// Promise: the bits of core/dtype.h, whichever instructions do it; but for the payload of NaN.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <type_traits>

#include "core/dtype.h"
#include "core/math.h"
#include "cpu/vector.h"

namespace rope::cpu {
namespace {

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
