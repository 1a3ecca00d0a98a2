// Element types in vectors: the format in memory, the lanes for arithmetic, and the conversion between the two.
// Promise: whichever instructions convert, results are bit-identical to core/dtype.h, except for NaN payloads.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <cmath>
#include <type_traits>

#include "core/dtype.h"
#include "core/math.h"
#include "cpu/vector.h"

namespace rope::cpu {
namespace {

// The channels of one vector of 16-bit elements, widened to two vectors: 0, 2, 4 .. and 1, 3, 5 .. A shift and a mask
// of 32-bit words produce them without moving a lane.
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

// deinterleave and interleave of vector.h for EvenOdd, whose words each hold one a and one b: no lane moves.
template <class V>
ROPE_INLINE Pair<EvenOdd<V>> deinterleave(EvenOdd<V> low, EvenOdd<V> high) {
  return {{low.even, high.even}, {low.odd, high.odd}};
}
template <class V>
ROPE_INLINE Pair<EvenOdd<V>> interleave(EvenOdd<V> a, EvenOdd<V> b) {
  return {{a.even, b.even}, {a.odd, b.odd}};
}

// ---- orders of lanes ----
// Lanes with one value for each of kStep pairs are in one of three orders:
//   pair order         pair i in lane i, counted through `even` and then `odd`: what read_lanes reads from an array
//   run order          what `unpack` returns for contiguous channels, one per pair
//   interleaved order  what `deinterleave` returns for two unpacked vectors of (first, second, first, second ..)

template <class V>
ROPE_INLINE V interleaved_from_pair_order(V v) {
  return exchange_middle(v);
}
template <class V>
ROPE_INLINE EvenOdd<V> interleaved_from_pair_order(EvenOdd<V> v) {
  return v;
}
template <class L>
ROPE_INLINE L pair_from_interleaved_order(L v) {
  return interleaved_from_pair_order(v);  // it is its own inverse
}

template <class V>
ROPE_INLINE V run_from_pair_order(V v) {
  return v;
}
template <class V>
ROPE_INLINE EvenOdd<V> run_from_pair_order(EvenOdd<V> v) {
  const Pair<V> run = deinterleave(v.even, v.odd);
  return {exchange_middle(run.first), exchange_middle(run.second)};
}
template <class V>
ROPE_INLINE V pair_from_run_order(V v) {
  return v;
}
template <class V>
ROPE_INLINE EvenOdd<V> pair_from_run_order(EvenOdd<V> v) {
  const Pair<V> pairs = interleave(exchange_middle(v.even), exchange_middle(v.odd));
  return {pairs.first, pairs.second};
}

// Clears the payload of each NaN, so that its low half is zero.
template <class V>
ROPE_INLINE V without_payload(V v) {
  return v == v ? v : V{} + NAN;
}
template <class V>
ROPE_INLINE EvenOdd<V> without_payload(EvenOdd<V> v) {
  return {without_payload(v.even), without_payload(v.odd)};
}

// ---- memory ----

// Read and write kStep<T> numbers of the arithmetic type; without kFull only the first n are read, and the others are
// 0. The halves of an EvenOdd are moved one by one, because gcc 12 copies a whole EvenOdd through the stack.
template <class L, bool kFull = true, class A>
ROPE_INLINE L read_lanes(const A* from, int64_t n = 0) {
  constexpr int64_t size = sizeof(A), lanes = kVectorBytes / size;
  if constexpr (std::is_same_v<L, Vector<A>>) {
    return read<L, kFull>(from, n * size);
  } else {
    const int64_t low = n < lanes ? n : lanes;
    return {read<Vector<A>, kFull>(from, low * size), read<Vector<A>, kFull>(from + lanes, (n - low) * size)};
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

// ---- element types ----

// Packed: one vector of elements in memory format. Lanes: the same elements in the arithmetic type.
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
  // The low 16 bits of every NaN here are zero: see unpack for x, load_contiguous for tables, position_of for
  // positions.
  ROPE_INLINE Packed pack(Lanes v) {
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    const auto half = [](Vector<float> v) { return bits_as<uint16x8_t>(vcvtq_low_bf16_f32(v)); };
    return bits_as<Words>(vzip1q_u16(half(v.even), half(v.odd)));
#elif defined(__AVX512BF16__)
    // vcvtne2ps2bf16 flushes denormals: if any result is 0, which may be a flushed denormal, the path below converts.
    const __m512i halves = bits_as<__m512i>(_mm512_cvtne2ps_pbh(v.odd, v.even));
    if (__builtin_expect(_mm512_test_epi16_mask(halves, _mm512_set1_epi16(0x7f80)) == ~0u, true)) {
      const auto h = bits_as<Vector<uint16_t>>(halves);
      return bits_as<Words>(shuffle(h, h, [](int i) { return i / 2 + i % 2 * 16; }));  // even, odd, even ..
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
#elif defined(__aarch64__)  // every AArch64 processor has FCVTL and FCVTN
  using Packed = float16x4_t;
  using Lanes = Vector<float>;
  ROPE_INLINE Lanes unpack(Packed v) { return vcvt_f32_f16(v); }
  ROPE_INLINE Packed pack(Lanes v) { return vcvt_f16_f32(v); }
#else
  using Packed = Words;
  using Lanes = EvenOdd<Vector<float>>;
  ROPE_INLINE Vector<float> widened(Words low) { return bits_as<Vector<float>>(fp32_of_float16<Vector<float>>(low)); }
  ROPE_INLINE Words narrowed(Vector<float> v) { return float16_of_fp32<Vector<float>>(bits_as<Words>(v)); }
  ROPE_INLINE Lanes unpack(Packed v) { return {widened(v & 0xffffu), widened(v >> 16)}; }
  ROPE_INLINE Packed pack(Lanes v) { return narrowed(v.even) | narrowed(v.odd) << 16; }
#endif
};

// The elements of one Packed: the number of pairs in a step.
template <class T>
constexpr int64_t kStep = sizeof(typename Elements<T>::Packed) / sizeof(T);

}  // namespace
}  // namespace rope::cpu
