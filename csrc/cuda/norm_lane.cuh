// Weights, angles and rounding of a lane, in registers: what norm_rotate.cuh and norm_grad.cuh share.
#pragma once

#include "core/norm.h"
#include "cuda/angles.cuh"
#include "cuda/norm_plan.h"
#include "cuda/place.cuh"
#include "cuda/rotate_units.cuh"
#include "cuda/vector.cuh"

namespace rope::cuda {

// Reads the accesses `first` and `second`, of kWidth elements each, of an array of E.
template <class E, int kWidth, class A>
ROPE_INLINE void read_accesses(const void* data, int first, int second, A (&to)[2 * kWidth]) {
  constexpr int kStep = kWidth * sizeof(E) > 16 ? 16 / sizeof(E) : kWidth, kVectors = kWidth / kStep;
  Vector<E, kStep> read_first[kVectors], read_second[kVectors];
  ROPE_UNROLL
  for (int i = 0; i < kVectors; ++i) {
    read_first[i] = read(vectors_at<kStep>(at<E>(data, first * kWidth)) + i);
    read_second[i] = read(vectors_at<kStep>(at<E>(data, second * kWidth)) + i);
  }
  ROPE_UNROLL
  for (int i = 0; i < kVectors; ++i) {
    widen_vector(read_first[i], to + i * kStep);
    widen_vector(read_second[i], to + kWidth + i * kStep);
  }
}

// Reads the weights of a unit.
template <class T, int kWidth>
ROPE_INLINE void read_weights(const NormSection& norm, UnitOffsets unit, Arithmetic<T> (&to)[2 * kWidth]) {
  using A = Arithmetic<T>;
  if (sizeof(T) < sizeof(A) && norm.weight_like_x) {
    read_accesses<T, kWidth>(norm.weight, unit.first, unit.first + unit.partner, to);
  } else {
    read_accesses<A, kWidth>(norm.weight, unit.first, unit.first + unit.partner, to);
  }
}

// Rounds channels to the type T of x.
template <class T, int kCount>
ROPE_INLINE void round_channels(Arithmetic<T> (&x)[kCount]) {
  ROPE_UNROLL
  for (int i = 0; i < kCount; ++i) x[i] = widened(narrowed<T>(x[i]));
}

// The rotation of one unit of the heads of a thread.
template <class T, int kWidth, Source kSource>
struct UnitRotation {
  using A = Arithmetic<T>;
  bool rotates, copied;  // copied: the token is neither normalized nor rotated
  UnitOffsets in, out;
  Angles<A, kWidth, kSource> angles;

  // Finds the unit and its angles at a token. A row outside the table is not read: its angles become NaN.
  ROPE_INLINE_MEMBER void start(const NormArguments& a, const Section<int>& s, const Coordinates& at) {
    constexpr bool kTables = kSource != Source::kFrequencies;
    const bool rotated_unit = at.unit < a.rotated_units;
    in = rotated_unit ? rotated_offsets(a.rotary_offset, a.in, at.unit)
                      : copied_offsets(a, s.copied, at.unit - a.rotated_units);
    out = in;
    int row = at.token + a.offset;
    int64_t start = 0;
    if (!kTables) {
      start = sequence_start(a.positions, at.token);
    } else if (a.rows != Rows::kToken) {
      row = row_of(a, at, lookup_of(a, at));
    }
    copied = kTables ? row == kNotRotated : start == kNotRotated;
    rotates = rotated_unit && !copied;
    if (!rotates) return;
    if (a.rotating == Rotating::kOther) out = rotated_offsets(a.rotary_offset, a.out, at.unit);
    const UnitPairs pairs = unit_pairs(a, at.unit);
    if constexpr (!kTables) {
      make_angles(a, at.batch, at.token, start, at.first_head, pairs, &angles);
    } else if (row == kOutside) {
      ROPE_UNROLL
      for (int i = 0; i < angles.kEntries * kWidth; ++i) {
        angles.cos[i / kWidth][i % kWidth] = angles.sin[i / kWidth][i % kWidth] = static_cast<A>(NAN);
      }
    } else {
      read_angles<T>(a, EntryIndex<int>{at.batch, row, at.first_head, pairs}, &angles);
    }
  }

  ROPE_INLINE_MEMBER void rotate(const NormArguments& a, A (&channels)[2 * kWidth]) const {
    dispatch_rotating<T, kWidth>(a, [&](auto within, auto round, const auto& rearrange) {
      rotate_channels<within.value, round.value, T>(angles, channels);
      rearrange(channels);
    });
  }
};

}  // namespace rope::cuda
