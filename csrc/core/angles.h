// cos and sin of position * frequency, without a table: a second source of the entries that core/math.h multiplies by.
//
// A frequency is given in turns per position, as the sum of two numbers (high and low), and the position too where one
// number does not hold it. Whole turns are dropped as soon as they appear, which is exact, so the error of the angle
// does not grow with the position but for what the two numbers do not hold of the frequency: 2^-49 of it in float.
// Then cos and sin of the rest are Taylor series on an eighth of a turn to either side.
//
// Errors in float, absolute, for frequencies up to 1 radian per position: 1e-7 up to position 2^20, 1.5e-7 up to 2^24,
// and position * 2^-48 beyond; cos^2 + sin^2 stays 1.
//
// The same bits everywhere: only products, sums, fused multiply-adds where they are written, rint, trunc and
// comparisons, each rounded once; no sine of a math library. reference.cos_sin is the same in PyTorch.
#pragma once

#include <cmath>

#include "core/macros.h"
#include "core/params.h"

namespace rope {

template <class A>
struct CosSin {
  A cos, sin;
};

// high + low: a number of more precision than one A has.
template <class A>
struct Two {
  A high, low;
};

// To the nearest integer, halves to the even one.
ROPE_INLINE float nearest(float value) { return rintf(value); }
ROPE_INLINE double nearest(double value) { return rint(value); }
// Towards zero.
ROPE_INLINE float truncated(float value) { return truncf(value); }
ROPE_INLINE double truncated(double value) { return trunc(value); }

// ---- positions ----

// Integers up to here are exact in float; larger positions are a multiple of it (high) and a rest (low).
constexpr int64_t kExactInFloat = 1 << 24;

template <class A>
ROPE_INLINE Two<A> position_of(const Positions& p, int64_t batch, int64_t token, int64_t sequence_start, int64_t axis) {
  if (!p.fractional) {
    const int64_t position = wanted_row(p, batch, token, sequence_start, axis), rest = position % kExactInFloat;
    return {static_cast<A>(position - rest), static_cast<A>(rest)};
  }
  const A position = static_cast<const A*>(p.positions.data)[position_index(p, batch, token, axis)] +
                     static_cast<A>(static_cast<int64_t>(offset_of(p, batch)));
  if (position != position) return {0, static_cast<A>(NAN)};  // one with zeros in its low half, for bfloat16_rounded
  const A multiple = truncated(position * A(1.0 / kExactInFloat)) * A(kExactInFloat);
  return {multiple, position - multiple};
}

// ---- turns ----

// a * b + c, rounded once: two thirds of the operations below, which decide whether making cos and sin keeps up with
// reading them (55 -> 40 ns for 64 pairs). A processor without the instruction gets the same bits from the C library.
ROPE_INLINE float fused(float a, float b, float c) { return fmaf(a, b, c); }
ROPE_INLINE double fused(double a, double b, double c) { return fma(a, b, c); }

// a * b - product, exactly, where `product` is a * b rounded.
ROPE_INLINE float product_error(float a, float b, float product) {
#if defined(__CUDA_ARCH__) || defined(__FP_FAST_FMAF)
  return fmaf(a, b, -product);
#else
  return static_cast<float>(static_cast<double>(a) * b - product);
#endif
}
ROPE_INLINE double product_error(double a, double b, double product) { return fma(a, b, -product); }

// Exact where |a| >= |b|.
template <class A>
ROPE_INLINE Two<A> sum_with_smaller(A a, A b) {
  const A sum = a + b;
  return {sum, b - (sum - a)};
}

// Exact always.
template <class A>
ROPE_INLINE Two<A> sum_of(A a, A b) {
  const A sum = a + b, b_of_sum = sum - a;
  return {sum, (a - (sum - b_of_sum)) + (b - b_of_sum)};
}

// position * rate without its whole turns, for positions below kExactInFloat: |high| <= 1/2, |low| < 1/4.
template <class A>
ROPE_INLINE Two<A> turns_of(A position, Two<A> rate) {
  const A product = position * rate.high;
  return {product - nearest(product), fused(position, rate.low, product_error(position, rate.high, product))};
}

// For multiples of it, whose low part has whole turns too.
template <class A>
ROPE_INLINE Two<A> turns_of_multiple(A position, Two<A> rate) {
  const A product = position * rate.high, error = product_error(position, rate.high, product);
  const A product_low = position * rate.low;
  return {product - nearest(product), (error - nearest(error)) + (product_low - nearest(product_low))};
}

template <class A>
ROPE_INLINE Two<A> add(Two<A> a, Two<A> b) {
  const Two<A> high = sum_of(a.high, b.high);
  return {high.high, high.low + (a.low + b.low)};
}

template <class A>
ROPE_INLINE Two<A> add_turns(Two<A> sum, Two<A> position, Two<A> rate) {
  if (position.high != 0) sum = add(sum, turns_of_multiple(position.high, rate));
  return add(sum, turns_of(position.low, rate));
}

// ---- cos and sin ----

// 2 pi = high + low.
ROPE_INLINE Two<float> two_pi(float) { return {6.2831855f, -1.7484555e-7f}; }
ROPE_INLINE Two<double> two_pi(double) { return {6.283185307179586, 2.4492935982947064e-16}; }

// Terms of the series of sin and cos after the first: the next would be below 2e-9 in float, 5e-17 in double.
template <class A>
constexpr int kSinTerms = sizeof(A) == 4 ? 4 : 8;
template <class A>
constexpr int kCosTerms = sizeof(A) == 4 ? 5 : 9;

template <int n>
constexpr double kFactorial = n * kFactorial<n - 1>;
template <>
constexpr double kFactorial<0> = 1;

// (-1 / first! + x2 / (first + 2)! - x2^2 / (first + 4)! ...), kTerms of them.
template <int kFirst, int kTerms, class A>
ROPE_INLINE A series(A x2) {
  constexpr A coefficient = static_cast<A>(-1 / kFactorial<kFirst>);
  if constexpr (kTerms == 1) {
    return coefficient;
  } else {
    return fused(-x2, series<kFirst + 2, kTerms - 1>(x2), coefficient);
  }
}

// For numbers below 2^20 in size the last bits of number + rounder<A> are those of the nearest integer, and
// (number + rounder<A>) - rounder<A> is that integer.
ROPE_INLINE float rounder(float) { return 0x1.8p23f; }
ROPE_INLINE double rounder(double) { return 0x1.8p52; }
ROPE_INLINE uint32_t bits_of(float value) { return bits_as<uint32_t>(value); }
ROPE_INLINE uint64_t bits_of(double value) { return bits_as<uint64_t>(value); }

// value, or -value where the bit with that number is set in `bits`.
template <class A, class Bits>
ROPE_INLINE A signed_by(A value, Bits bits, int bit) {
  return bits_as<A>(bits_of(value) ^ (bits << (8 * sizeof(A) - 1 - bit) & Bits{1} << (8 * sizeof(A) - 1)));
}

// turns: a few of them, added: |high + low| below 2^18. scale_cos and scale_sin: factors on the results.
template <class A>
ROPE_INLINE CosSin<A> cos_sin(Two<A> turns, A scale_cos, A scale_sin) {
  const Two<A> sum = sum_with_smaller(turns.high, turns.low);
  const A rounded = fused(4, sum.high, rounder(A()));
  const auto quarters = bits_of(rounded);                            // from the first axis, modulo 4 in the last bits
  const A rest = fused(A(-0.25), rounded - rounder(A()), sum.high);  // exact, at most 1/8
  const A x = rest * two_pi(A()).high;                               // radians; x + x_low more exactly
  const A x_low =
      fused(sum.low, two_pi(A()).high, fused(rest, two_pi(A()).low, product_error(rest, two_pi(A()).high, x)));
  const A x2 = x * x;
  const A sin = x + fused(x, x2 * series<3, kSinTerms<A>>(x2), fused(A(-0.5) * x_low, x2, x_low));
  const A cos = 1 + fused(x2, series<2, kCosTerms<A>>(x2), -x_low * x);
  const bool odd = quarters & 1;
  return {signed_by(odd ? sin : cos, quarters + 1, 1) * scale_cos, signed_by(odd ? cos : sin, quarters, 1) * scale_sin};
}

}  // namespace rope
