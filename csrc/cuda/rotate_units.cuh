// The rotation of a thread's units, in registers.
#pragma once

#include <type_traits>

#include "core/math.h"
#include "cuda/angles.cuh"
#include "cuda/plan.h"
#include "cuda/vector.cuh"

namespace rope::cuda {

// Rotates the channels x of a unit. kWithin: pairs are within its accesses; else across them (Rotating).
template <bool kWithin, bool kRound, class T, int kWidth, Source kSource>
ROPE_INLINE void rotate_channels(const Angles<Arithmetic<T>, kWidth, kSource>& angles, Arithmetic<T> (&x)[2 * kWidth]) {
  using A = Arithmetic<T>;
  ROPE_UNROLL
  for (int i = 0; i < kWidth; ++i) {
    A& first = x[kWithin ? 2 * i : i];
    A& second = x[kWithin ? 2 * i + 1 : kWidth + i];
    const auto y = rotate_pair(Pair<A>{first, second}, entries_of(angles.cos, i), entries_of(angles.sin, i),
                               [](A product) { return kRound ? widened(narrowed<T>(product)) : product; });
    first = y.first;
    second = y.second;
  }
}

// Converts (a0 a1 .. b0 b1 ..) to (a0 b0 a1 b1 ..), or back.
template <bool kToWithin, int kCount, class A>
ROPE_INLINE void exchange_pairing(A (&x)[kCount]) {
  A moved[kCount];
  ROPE_UNROLL
  for (int i = 0; i < kCount; ++i) {
    const int within = i, across = i / 2 + i % 2 * (kCount / 2);
    moved[kToWithin ? within : across] = x[kToWithin ? across : within];
  }
  ROPE_UNROLL
  for (int i = 0; i < kCount; ++i) x[i] = moved[i];
}

// Calls rotate(within, round, rearrange) as `a` requires. The first two are kWithin and kRound of rotate_channels;
// rearrange(channels) puts the channels in the order of the result. The branches are outside the loops over pairs,
// because inside, every iteration would also issue the instructions of the path not taken.
template <class T, int kWidth, class Int, class Rotate>
ROPE_INLINE void dispatch_rotating(const RotateArguments<Int>& a, const Rotate& rotate) {
  constexpr bool kMayRound = sizeof(T) < sizeof(Arithmetic<T>);
  const auto rotate_any = [&](auto within, const auto& rearrange) {
    if (kMayRound && a.round_products) {
      rotate(within, std::bool_constant<kMayRound>{}, rearrange);
    } else {
      rotate(within, std::false_type{}, rearrange);
    }
  };
  const auto keep = [](auto&) {};
  if (a.rotating == Rotating::kAcross) {
    rotate(std::false_type{}, std::false_type{}, keep);
  } else if (kWidth > 1 && a.rotating == Rotating::kWithin) {
    rotate(std::bool_constant<(kWidth > 1)>{}, std::false_type{}, keep);
  } else if (kWidth > 1 && a.in_interleaved) {
    rotate_any(std::bool_constant<(kWidth > 1)>{}, [&](auto& channels) {
      if (!a.out_interleaved) exchange_pairing<false>(channels);
    });
  } else {
    rotate_any(std::false_type{}, [&](auto& channels) {
      if (a.out_interleaved) exchange_pairing<true>(channels);
    });
  }
}

// Rotates one unit or two, each of two vectors.
template <class T, int kWidth, Source kSource, class Int>
ROPE_INLINE void rotate_units(const Angles<Arithmetic<T>, kWidth, kSource>& angles, const RotateArguments<Int>& a,
                              bool two, Vector<T, kWidth> (&x)[2][2]) {
  dispatch_rotating<T, kWidth>(a, [&](auto within, auto round, const auto& rearrange) {
    ROPE_UNROLL
    for (int i = 0; i < 2; ++i) {
      if (i && !two) continue;
      Arithmetic<T> channels[2 * kWidth];
      widen_vector(x[i][0], channels);
      widen_vector(x[i][1], channels + kWidth);
      rotate_channels<within.value, round.value, T>(angles, channels);
      rearrange(channels);
      narrow_vector(channels, &x[i][0]);
      narrow_vector(channels + kWidth, &x[i][1]);
    }
  });
}

}  // namespace rope::cuda
