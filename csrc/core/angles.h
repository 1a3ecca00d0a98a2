// Computes cos and sin of position * frequency, without a table: the other source of the factors in core/math.h.
//
// A frequency, in revolutions per position, is the sum of two numbers (high and low), and so is a position that a
// single number cannot represent. Whole revolutions are dropped as soon as they appear, which is exact. The error of
// the angle therefore grows with the position only through the rounding error of the frequency, 2^-49 of it in float.
// cos and sin of the remainder, at most an eighth of a revolution, are Taylor series.
//
// Absolute errors in float, for frequencies up to 1 radian per position: 1e-7 up to position 2^20, 1.5e-7 up to 2^24,
// and 1.2e-6 + angle * 2^-47 beyond; cos^2 + sin^2 stays 1. Beyond 2^24 the low parts of the sum of revolutions reach
// 1, and their rounding errors 3 * 2^-24 of a revolution; products with the low part of the frequency lose 2^-48 of it.
//
// Results are bit-identical on every device and instruction set: the only operations are products, sums, rint, trunc,
// comparisons and explicit fused multiply-adds, each rounded once; no sine of a math library is called. cos_sin in
// rope_ext/reference.py is the same computation in PyTorch. two_sum and two_prod are the error-free transformations of
// the literature (Dekker 1971, Knuth 1969).
#pragma once

#include <cmath>

#include "core/macros.h"
#include "core/params.h"

namespace rope {

template <class A>
struct CosSin {
  A cos, sin;
};

// The unevaluated sum high + low, which has more precision than one A.
template <class A>
struct Two {
  A high, low;
};

// Rounds to the nearest integer, ties to even.
ROPE_INLINE float nearest(float value) { return rintf(value); }
ROPE_INLINE double nearest(double value) { return rint(value); }
// Rounds toward zero.
ROPE_INLINE float truncated(float value) { return truncf(value); }
ROPE_INLINE double truncated(double value) { return trunc(value); }

// ---- positions ----

// All integers up to this one are exact in float. A larger position is the sum of a multiple of it (high) and a
// remainder (low).
constexpr int64_t kExactInFloat = 1 << 24;

// The position plus its offsets, on one axis; NaN if start is kOutside. start: the result of sequence_start, which must
// not be kNotRotated.
template <class A>
ROPE_INLINE Two<A> position_of(const Positions& p, int64_t batch, int64_t token, int64_t start, int64_t axis) {
  const A nan = static_cast<A>(NAN);  // low 16 bits zero: see bfloat16_rounded
  if (!p.fractional) {
    const int64_t position = position_with_offset(p, batch, token, start, axis), rest = position % kExactInFloat;
    return {static_cast<A>(position - rest), start == kOutside ? nan : static_cast<A>(rest)};
  }
  const A position = static_cast<const A*>(p.positions.data)[position_index(p, batch, token, axis)] +
                     static_cast<A>(static_cast<int64_t>(offset_of(p, batch)));
  if (position != position) return {0, nan};
  const A multiple = truncated(position * A(1.0 / kExactInFloat)) * A(kExactInFloat);
  return {multiple, position - multiple};
}

// ---- exact products and sums ----

#if defined(__CUDA_ARCH__) || defined(__FP_FAST_FMAF)
#define ROPE_HAS_FMA 1
#else
#define ROPE_HAS_FMA 0
#endif

// a * b + c, rounded once. FMA instructions save a fifth of the operations in this file; the number of operations
// decides whether computing cos and sin keeps up with reading them.
ROPE_INLINE float fma(float a, float b, float c) {
#if ROPE_HAS_FMA
  return fmaf(a, b, c);
#else
  // fmaf of the C library takes up to 250 times as long and does not vectorize. Here the product is exact in double,
  // and the sum is rounded to odd, so that the conversion to float is correctly rounded.
  const double product = static_cast<double>(a) * b, sum = product + c, c_of_sum = sum - product;
  const double lost = (product - (sum - c_of_sum)) + (c - c_of_sum);
  const uint64_t bits = bits_as<uint64_t>(sum), is_even = ~bits & 1;
  const uint64_t outwards = bits + is_even, inwards = bits - is_even;
  const bool away = (lost < 0) == (sum < 0);
  return static_cast<float>(bits_as<double>(lost < 0 || lost > 0 ? (away ? outwards : inwards) : bits));
#endif
}
ROPE_INLINE double fma(double a, double b, double c) { return ::fma(a, b, c); }

// a * b, exactly: the rounded product and its error.
ROPE_INLINE Two<float> two_prod(float a, float b) {
  const float product = a * b;
#if ROPE_HAS_FMA
  return {product, fmaf(a, b, -product)};
#else
  return {product, static_cast<float>(static_cast<double>(a) * b - product)};
#endif
}
ROPE_INLINE Two<double> two_prod(double a, double b) {
  const double product = a * b;
  return {product, ::fma(a, b, -product)};
}

// a + b, exactly: the rounded sum and its error.
template <class A>
ROPE_INLINE Two<A> two_sum(A a, A b) {
  const A sum = a + b, b_of_sum = sum - a;
  return {sum, (a - (sum - b_of_sum)) + (b - b_of_sum)};
}

// ---- revolutions ----

// position * frequency without whole revolutions, for |position| < kExactInFloat: |high| <= 1/2, and |low| < 1/4 for
// frequencies up to 1 radian per position.
template <class A>
ROPE_INLINE Two<A> revolutions_of(A position, Two<A> frequency) {
  const Two<A> product = two_prod(position, frequency.high);
  return {product.high - nearest(product.high), fma(position, frequency.low, product.low)};
}

// revolutions_of for multiples of kExactInFloat, for which the low part contains whole revolutions too.
template <class A>
ROPE_INLINE Two<A> revolutions_of_multiple(A position, Two<A> frequency) {
  const Two<A> product = two_prod(position, frequency.high);
  const A of_low = position * frequency.low;
  return {product.high - nearest(product.high), (product.low - nearest(product.low)) + (of_low - nearest(of_low))};
}

template <class A>
ROPE_INLINE Two<A> add(Two<A> a, Two<A> b) {
  const Two<A> high = two_sum(a.high, b.high);
  return {high.high, high.low + (a.low + b.low)};
}

// sum + position * frequency, up to whole revolutions; `position` comes from position_of.
template <class A>
ROPE_INLINE Two<A> add_revolutions(Two<A> sum, Two<A> position, Two<A> frequency) {
  if (position.high != 0) sum = add(sum, revolutions_of_multiple(position.high, frequency));
  return add(sum, revolutions_of(position.low, frequency));
}

// ---- cos and sin ----

// 2 pi = high + low.
ROPE_INLINE Two<float> two_pi(float) { return {6.2831855f, -1.7484555e-7f}; }
ROPE_INLINE Two<double> two_pi(double) { return {6.283185307179586, 2.4492935982947064e-16}; }

// Terms of the series of sin and cos after the first. The first omitted term is below 2e-9 in float, 1e-19 in double.
template <class A>
constexpr int kSinTerms = sizeof(A) == 4 ? 4 : 8;
template <class A>
constexpr int kCosTerms = sizeof(A) == 4 ? 5 : 9;

template <int n>
constexpr double kFactorial = n * kFactorial<n - 1>;
template <>
constexpr double kFactorial<0> = 1;

// The sum of kTerms terms -1 / kFirst! + x2 / (kFirst + 2)! - x2^2 / (kFirst + 4)! ...
template <int kFirst, int kTerms, class A>
ROPE_INLINE A series(A x2) {
  constexpr A coefficient = static_cast<A>(-1 / kFactorial<kFirst>);
  if constexpr (kTerms == 1) {
    return coefficient;
  } else {
    return fma(-x2, series<kFirst + 2, kTerms - 1>(x2), coefficient);
  }
}

// For |number| < 2^20 the last bits of number + rounder(A()) are those of the nearest integer, and
// (number + rounder(A())) - rounder(A()) is that integer.
ROPE_INLINE float rounder(float) { return 0x1.8p23f; }
ROPE_INLINE double rounder(double) { return 0x1.8p52; }
ROPE_INLINE uint32_t bits_of(float value) { return bits_as<uint32_t>(value); }
ROPE_INLINE uint64_t bits_of(double value) { return bits_as<uint64_t>(value); }

// -value if bit `bit` of `bits` is set, else value.
template <class A, class Bits>
ROPE_INLINE A signed_by(A value, Bits bits, int bit) {
  return bits_as<A>(bits_of(value) ^ (bits << (8 * sizeof(A) - 1 - bit) & Bits{1} << (8 * sizeof(A) - 1)));
}

// cos and sin of an angle in revolutions, |high + low| < 2^18.
template <class A>
ROPE_INLINE CosSin<A> cos_sin(Two<A> revolutions) {
  const A rounded = fma(4, revolutions.high + revolutions.low, rounder(A()));
  const auto quarters = bits_of(rounded);  // the last two bits: quarter revolutions modulo 4
  const A high = fma(A(-0.25), rounded - rounder(A()), revolutions.high);  // exact
  const A rest = high + revolutions.low;                                   // at most 1/8, rounded once
  const Two<A> product = two_prod(rest, two_pi(A()).high);
  const A x = product.high, x_low = fma(rest, two_pi(A()).low, product.low);  // x + x_low is the rest in radians
  const A x2 = x * x;
  const A sin = x + fma(x, x2 * series<3, kSinTerms<A>>(x2), x_low);
  const A cos = 1 + fma(x2, series<2, kCosTerms<A>>(x2), -x_low * x);
  const bool odd = quarters & 1;
  return {signed_by(odd ? sin : cos, quarters + 1, 1), signed_by(odd ? cos : sin, quarters, 1)};
}

}  // namespace rope
