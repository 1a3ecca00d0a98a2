// The formula. Only this file multiplies channels by a cosine.
//
// The rotation of one pair (first, second) of channels by an angle:
//     y.first  = x.first  * cos.first  - x.second * sin.first
//     y.second = x.second * cos.second + x.first  * sin.second
// cos and sin have one entry per channel; with one entry per pair both channels read the same one.
//
// The derivatives need no other formula. With F = sum over pairs of (g.first * y.first + g.second * y.second):
//     dF/dx   = the formula applied to g, with -sin and the two entries of sin exchanged (the transposed 2x2 block)
//     dF/dcos = (g.first * x.first, g.second * x.second),  dF/dsin = (-g.first * x.second, g.second * x.first)
// and F is linear in g, in x and in (cos, sin), so derivatives of these are again one of the three.
//
// Products and sums are rounded one by one, as in eager PyTorch (compiled without contraction into FMA), so that
// results are bit-identical to the reference on every instruction set. Eager code in 16 bits also rounds the products
// to 16 bits: `round` does that.
#pragma once

#include "core/macros.h"

namespace rope {

template <class A>
struct Pair {
  A first, second;
};

// round: applied to each product before the sum.
template <class A, class Round>
ROPE_INLINE Pair<A> rotate_pair(Pair<A> x, Pair<A> cos, Pair<A> sin, const Round& round) {
  return {round(x.first * cos.first) - round(x.second * sin.first),
          round(x.second * cos.second) + round(x.first * sin.second)};
}

template <class A>
ROPE_INLINE Pair<A> cos_gradient(Pair<A> g, Pair<A> x) {
  return {g.first * x.first, g.second * x.second};
}

template <class A>
ROPE_INLINE Pair<A> sin_gradient(Pair<A> g, Pair<A> x) {
  return {-(g.first * x.second), g.second * x.first};
}

}  // namespace rope
