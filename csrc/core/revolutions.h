// Converts frequencies from radians to revolutions per position, the unit in which kernels read them (angles.h).
//
// high is radians / (2 pi) rounded to the arithmetic type, and low is the error of that rounding. All operations but
// the last rounding are in double, and match `revolutions` in rope_ext/_reference_angles.py one by one, so that results
// are bit-identical even on overflow. For that the product is split (Dekker 1971): two_prod of angles.h is as exact,
// but differs where the product overflows or is denormal.
#pragma once

#include "core/angles.h"
#include "core/dispatch.h"

namespace rope {

struct RevolutionsParams {
  const void* radians;  // (axes, heads, pairs)
  DType dtype;          // of radians
  int64_t axes, heads, pairs;
  int64_t axis_stride, head_stride, pair_stride;  // of radians, in elements; 0 broadcasts
  DType arithmetic;                               // of high and low: float32 or float64
  void *high, *low;                               // contiguous (axes, heads, pairs)
};

// Splits a into the sum of two doubles of 26 bits each.
ROPE_INLINE Two<double> halves(double a) {
  const double scaled = a * 134217729.0;  // 2^27 + 1
  const double high = scaled - (scaled - a);
  return {high, a - high};
}

// The exact a * b - product, where product is the rounded a * b.
ROPE_INLINE double product_error(double a, double b, double product) {
  const Two<double> x = halves(a), y = halves(b);
  return ((x.high * y.high - product) + x.high * y.low + x.low * y.high) + x.low * y.low;
}

ROPE_INLINE Two<double> rounded_once(Two<double> made, double) { return made; }
ROPE_INLINE Two<float> rounded_once(Two<double> made, float) {
  const float high = static_cast<float>(made.high);
  return {high, static_cast<float>(made.high - high + made.low)};
}

template <class A>
ROPE_INLINE Two<A> revolutions_per_position(double radians) {
  constexpr double per_radian = 0.15915494309189535, per_radian_low = -9.839338337591243e-18;  // 1 / (2 pi) is the sum
  const double high = radians * per_radian;
  return rounded_once({high, product_error(radians, per_radian, high) + radians * per_radian_low}, A());
}

template <class T, class A>
ROPE_INLINE void make_revolutions(const RevolutionsParams& p, int64_t axis, int64_t head, int64_t pair) {
  const int64_t from = axis * p.axis_stride + head * p.head_stride + pair * p.pair_stride;
  const auto made = revolutions_per_position<A>(static_cast<double>(widen(*at<T>(p.radians, from))));
  const int64_t to = (axis * p.heads + head) * p.pairs + pair;
  *at<A>(p.high, to) = made.high;
  *at<A>(p.low, to) = made.low;
}

// Calls function(TypeTag<T>{}, TypeTag<A>{}) with the types of radians and of the result.
template <class Function>
static void dispatch_revolutions(const RevolutionsParams& p, const Function& function) {
  dispatch_dtype(p.dtype, [&](auto t) { dispatch_arithmetic(p.arithmetic, [&](auto a) { function(t, a); }); });
}

}  // namespace rope
