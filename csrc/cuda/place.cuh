// Locates the work of a thread of the rotate kernel: its coordinates, its unit in memory, its row of cos and sin.
#pragma once

#include "core/params.h"
#include "cuda/plan.h"
#include "cuda/vector.cuh"

namespace rope::cuda {

// ---- coordinates ----

// The section of a thread of a round. Usually it is one of the first two, which need no loop.
template <class Int>
ROPE_INLINE int section_of(const RotateArguments<Int>& a, Int thread) {
  int section = thread >= a.sections[1].first_thread;
  if (thread >= a.sections[2].first_thread) {
    for (section = 2; section + 1 < kMaxTensors && thread >= a.sections[section + 1].first_thread;) ++section;
  }
  return section;
}

struct Coordinates {
  int batch, token, first_head, unit;
};

// index: of the thread in its section, through all rounds. Returns false if the thread has no work.
template <class Int>
ROPE_INLINE bool coordinates_of(const RotateArguments<Int>& a, const Section<Int>& s, Int index, Coordinates* to) {
  const Int head = quotient(index, s.units), token = quotient(head, s.head_step), batch = quotient(token, a.seqlen);
  *to = {static_cast<int>(batch), static_cast<int>(remainder(token, batch, a.seqlen)),
         static_cast<int>(remainder(head, token, s.head_step)), static_cast<int>(remainder(index, head, s.units))};
  return token < a.tokens;
}

// ---- the unit in memory ----

// The two accesses of a unit, in accesses: the offset of the first in its head, and the distance from there to the
// second.
struct UnitOffsets {
  int first, partner;
};

ROPE_INLINE UnitOffsets rotated_offsets(int rotary_offset, const UnitPairing& pairing, int unit) {
  return {rotary_offset + unit * pairing.step, pairing.partner};
}

// The units of the `copied` accesses of a head that are only copied. Unit u is the accesses u and u + (copied + 1) / 2,
// so that neighboring threads access neighboring addresses. A leftover access forms a unit with itself.
template <class Int>
ROPE_INLINE UnitOffsets copied_offsets(const RotateArguments<Int>& a, int copied, int unit) {
  const auto outside = [&](int access) { return access < a.rotary_offset ? access : access + a.rotary_accesses; };
  const int partner = unit + (copied + 1) / 2;
  const int first = outside(unit), second = partner < copied ? outside(partner) : first;
  return {first, second - first};
}

template <class Access>
struct UnitPointers {
  Access *first, *second;
};

// The pointers to a unit in the thread's first head. Access: Vector<T, kWidth>, const for inputs.
template <class Access, class Data, class Int>
ROPE_INLINE UnitPointers<Access> first_unit(Data* data, const AccessStrides<Int>& stride, const Coordinates& at,
                                            UnitOffsets unit) {
  const Int channel = sizeof(Int) == sizeof(int) ? 1 : stride.channel;  // always 1 in accesses of more than one element
  Access* first = static_cast<Access*>(data) + (at.batch * stride.batch + at.token * stride.token +
                                                at.first_head * stride.head + unit.first * channel);
  // Here the product takes fewer instructions even if the stride is 1: one 64-bit multiplication replaces three
  // additions.
  return {first, first + unit.partner * stride.channel};
}

template <class Access, class Step>
ROPE_INLINE UnitPointers<Access> advanced(UnitPointers<Access> unit, Step accesses) {
  return {unit.first + accesses, unit.second + accesses};
}

template <class T, int kWidth>
ROPE_INLINE void read_unit(UnitPointers<const Vector<T, kWidth>> from, Vector<T, kWidth> (&x)[2]) {
  x[0] = read(from.first);
  x[1] = read(from.second);
}

template <class T, int kWidth>
ROPE_INLINE void write_unit(const Vector<T, kWidth> (&x)[2], UnitPointers<Vector<T, kWidth>> to) {
  write(x[0], to.first);
  write(x[1], to.second);
}

// ---- the row of cos and sin ----

// What determines the row of a token, unless the row is the token. It is loaded early, and used once it has arrived.
// Together, the two functions below are table_row (core/positions.h).
struct Lookup {
  int64_t start, position;
};

template <class Int>
ROPE_INLINE Lookup lookup_of(const RotateArguments<Int>& a, const Coordinates& at) {
  if (a.rows == Rows::kPosition) {
    const Int index = at.batch * a.positions_batch_stride + at.token * a.positions_token_stride;
    return {0, load(a.positions.positions, index)};
  }
  const int64_t start = sequence_start(a.positions, at.token);
  return {start, position_before_offset(a.positions, at.batch, at.token, start)};
}

// A row of the table, kNotRotated or kOutside.
template <class Int>
ROPE_INLINE Int row_of(const RotateArguments<Int>& a, const Coordinates& at, const Lookup& found) {
  if (a.rows == Rows::kPosition) return row_in_table(found.position, a.positions.offset, a.positions.rows);
  if (found.start == kNotRotated) return kNotRotated;
  return row_at(a.positions, at.batch, found.start, found.position);
}

}  // namespace rope::cuda
