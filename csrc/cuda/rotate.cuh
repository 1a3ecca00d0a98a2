// What one thread of the rotate kernel does. Threads share nothing, so tests run the same code on a CPU, one thread
// after another (csrc/introspect/emulate_cuda.cpp).
#pragma once

#include "core/dispatch.h"
#include "core/math.h"
#include "core/params.h"
#include "cuda/angles.cuh"
#include "cuda/plan.h"
#include "cuda/vector.cuh"

namespace rope::cuda {

// ---- the unit of a thread ----

// The two accesses of a unit: where the first begins in its head, and how far from it the second, in accesses.
struct Accesses {
  int first, partner;
};

ROPE_INLINE Accesses rotated_accesses(int rotary_offset, const Units& units, int unit) {
  return {rotary_offset + unit * units.step, units.partner};
}

// A head has `copied` accesses that are only copied, two to a unit. A leftover access forms a unit with itself.
template <class Int>
ROPE_INLINE Accesses copied_accesses(const RotateArguments<Int>& a, int copied, int unit) {
  const auto outside = [&](int access) { return access < a.rotary_offset ? access : access + a.rotary_accesses; };
  const int first = outside(2 * unit), second = 2 * unit + 1 < copied ? outside(2 * unit + 1) : first;
  return {first, second - first};
}

// Rotates the channels x of a unit, whose pairs lie across its accesses or within them.
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

// (a0 b0 a1 b1 ..) from (a0 a1 .. b0 b1 ..), or back.
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

// Rotates one unit or two, each of two vectors. The branches lie outside the loops over pairs, whose every iteration
// would otherwise issue the instructions of the path not taken.
template <class T, int kWidth, Source kSource, class Int>
ROPE_INLINE void rotate_units(const Angles<Arithmetic<T>, kWidth, kSource>& angles, const RotateArguments<Int>& a,
                              bool two, Vector<T, kWidth> (&x)[2][2]) {
  using A = Arithmetic<T>;
  const auto rotate = [&](auto within, auto round, const auto& rearrange) {
    ROPE_UNROLL
    for (int i = 0; i < 2; ++i) {
      if (i && !two) continue;
      A channels[2 * kWidth];
      widen_vector(x[i][0], channels);
      widen_vector(x[i][1], channels + kWidth);
      rotate_channels<within.value, round.value, T>(angles, channels);
      rearrange(channels);
      narrow_vector(channels, &x[i][0]);
      narrow_vector(channels + kWidth, &x[i][1]);
    }
  };
  const auto rotate_any = [&](auto within, const auto& rearrange) {
    if (sizeof(T) < sizeof(A) && a.round_products) {
      rotate(within, std::bool_constant<(sizeof(T) < sizeof(A))>{}, rearrange);
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

// ---- rotate ----

// The section of a thread of a round: mostly one of the first two.
template <class Int>
ROPE_INLINE int section_of(const RotateArguments<Int>& a, Int thread) {
  int section = thread >= a.sections[1].first_thread;
  if (thread >= a.sections[2].first_thread) {
    for (section = 2; section + 1 < kMaxTensors && thread >= a.sections[section + 1].first_thread;) ++section;
  }
  return section;
}

// What a thread does: the unit `unit` of the heads of slot `slot` of a token.
struct Share {
  int batch, token, slot, unit;
};

// index: of the thread in its section. False if the section has no such thread.
template <class Int>
ROPE_INLINE bool share_of(const RotateArguments<Int>& a, const Section<Int>& s, Int index, Share* to) {
  const Int slot = quotient(index, s.units), token = quotient(slot, s.slots), batch = quotient(token, a.seqlen);
  *to = {static_cast<int>(batch), static_cast<int>(remainder(token, batch, a.seqlen)),
         static_cast<int>(remainder(slot, token, s.slots)), static_cast<int>(remainder(index, slot, s.units))};
  return token < a.tokens;
}

// The two accesses of a unit of one head in memory.
template <class Access>
struct Unit {
  Access *first, *second;
};

// The unit of the first head of a slot. Access: Vector<T, kWidth>, const in x.
template <class Access, class Data, class Int>
ROPE_INLINE Unit<Access> first_unit(Data* data, const AccessStrides<Int>& stride, const Share& share, Accesses place) {
  const Int channel = sizeof(Int) == sizeof(int) ? 1 : stride.channel;  // 1 in accesses of more than one element
  Access* first = static_cast<Access*>(data) + (share.batch * stride.batch + share.token * stride.token +
                                                share.slot * stride.head + place.first * channel);
  return {first, first + place.partner * stride.channel};
}

template <class Access, class Step>
ROPE_INLINE Unit<Access> advanced(Unit<Access> unit, Step accesses) {
  return {unit.first + accesses, unit.second + accesses};
}

template <class T, int kWidth>
ROPE_INLINE void read_unit(Unit<const Vector<T, kWidth>> from, Vector<T, kWidth> (&x)[2]) {
  x[0] = read(from.first);
  x[1] = read(from.second);
}

template <class T, int kWidth>
ROPE_INLINE void write_unit(const Vector<T, kWidth> (&x)[2], Unit<Vector<T, kWidth>> to) {
  write(x[0], to.first);
  write(x[1], to.second);
}

// Writes `value` to the channels of a unit, in the heads of a slot.
template <class T, int kWidth, class Int>
ROPE_INLINE void fill_heads(Arithmetic<T> value, const Section<Int>& s, int head, Unit<Vector<T, kWidth>> to) {
  Vector<T, kWidth> x[2];
  fill(value, &x[0]);
  fill(value, &x[1]);
  for (; head < s.heads; head += static_cast<int>(s.slots.by)) {
    write_unit(x, to);
    to = advanced(to, s.out_step);
  }
}

// thread: its number in the round. kWidth is plan.vector, kSource p.source.
template <class T, int kWidth, Source kSource>
ROPE_INLINE void rotate_thread(const RotateArguments<IntOf<kWidth>>& a, int round, IntOf<kWidth> thread) {
  using Int = IntOf<kWidth>;
  using Access = Vector<T, kWidth>;
  constexpr bool kTables = kSource != Source::kFrequencies;
  const Section<Int>& s = a.sections[section_of(a, thread)];
  Share share;
  if (!share_of(a, s, round * s.threads + (thread - s.first_thread), &share)) return;

  // The position comes first: cos and sin, and with them everything else, wait for it. Its row follows once it has
  // arrived.
  int64_t start = 0, position = 0;
  if (!kTables) {
    start = sequence_start(a.positions, share.token);
  } else if (a.rows != Rows::kToken) {
    if (a.rows == Rows::kPosition) {
      const Int index = share.batch * a.positions_batch_stride + share.token * a.positions_token_stride;
      position = load(a.positions.positions, index);
    } else {
      start = sequence_start(a.positions, share.token);
      position = position_before_offset(a.positions, share.batch, share.token, start);
    }
  }

  const bool rotates = share.unit < a.rotated_units;
  const Accesses place = rotates ? rotated_accesses(a.rotary_offset, a.in, share.unit)
                                 : copied_accesses(a, s.copied, share.unit - a.rotated_units);
  auto in = first_unit<const Access>(s.in, s.in_stride, share, place);
  Access x[2][2];  // units of two heads, or of one
  int head = share.slot;
  bool two;
  const auto read_heads = [&] {
    two = head + s.slots.by < s.heads;
    read_unit(in, x[0]);
    if (two) read_unit(advanced(in, s.in_step), x[1]);
  };
  read_heads();

  Int row = 0;
  if constexpr (kTables) {
    row = share.token + a.offset;
    if (a.rows != Rows::kToken) {
      row = a.rows == Rows::kPosition ? row_in_table(position, a.positions.offset, a.positions.rows)
            : start == kNotRotated    ? kNotRotated
                                      : row_at(a.positions, share.batch, start, position);
      if (rotates && row == kOutside) {  // it is not read
        return fill_heads<T>(NAN, s, head, first_unit<Access>(s.out, s.out_stride, share, place));
      }
    }
  }
  const bool rotated = rotates && (kTables ? row >= 0 : start != kNotRotated);
  Angles<Arithmetic<T>, kWidth, kSource> angles;
  if (rotated) {
    const int pair = share.unit * kWidth;
    if constexpr (kTables) {
      read_angles<T>(a, Row<Int>{share.batch, row, share.slot, pair}, &angles);
    } else {
      make_angles(a, share.batch, share.token, start, share.slot, pair, &angles);
    }
  }
  // A token that is not rotated keeps its pairing too.
  const bool same_place = a.rotating != Rotating::kOther || !rotated;
  auto out = first_unit<Access>(s.out, s.out_stride, share,
                                same_place ? place : rotated_accesses(a.rotary_offset, a.out, share.unit));
  while (true) {
    if (rotated) rotate_units(angles, a, two, x);
    write_unit(x[0], out);
    if (!two) return;
    write_unit(x[1], advanced(out, s.out_step));
    head += 2 * static_cast<int>(s.slots.by);
    if (head >= s.heads) return;
    in = advanced(in, int64_t{2} * s.in_step);
    out = advanced(out, int64_t{2} * s.out_step);
    read_heads();
  }
}

// ---- instances ----

template <class T, int kWidth_, Source kSource_>
struct Instance {
  using Element = T;
  static constexpr int kWidth = kWidth_;
  static constexpr Source kSource = kSource_;
};

template <int kWidth, class T, class Run>
void run_width(const RotateParams& p, const Run& run) {
  switch (p.source) {
    case Source::kPerPair:
      return run(Instance<T, kWidth, Source::kPerPair>{});
    case Source::kPerChannel:
      return run(Instance<T, kWidth, Source::kPerChannel>{});
    case Source::kFrequencies:
      return run(Instance<T, kWidth, Source::kFrequencies>{});
  }
}

// Calls `run` with the instance of rotate_thread for this call: accesses of 16 bytes, of 4, or of one element.
template <class Run>
void run_instance(const RotateParams& p, const Plan& plan, const Run& run) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kWidest = 16 / sizeof(T);
    if (plan.vector == kWidest) return run_width<kWidest, T>(p, run);
    if constexpr (sizeof(T) == 2) {
      if (plan.vector == 2) return run_width<2, T>(p, run);
    }
    run_width<1, T>(p, run);
  });
}

}  // namespace rope::cuda
