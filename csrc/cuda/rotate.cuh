// The work of one thread of the rotate kernel. Threads share nothing, so that tests can run the same code on a CPU, one
// thread after another (csrc/introspect/emulate_cuda.cpp).
#pragma once

#include "core/dispatch.h"
#include "core/params.h"
#include "cuda/angles.cuh"
#include "cuda/place.cuh"
#include "cuda/plan.h"
#include "cuda/rotate_units.cuh"
#include "cuda/vector.cuh"

namespace rope::cuda {

// Fills a unit with `value`, in all heads of a thread from `head` on.
template <class T, int kWidth, class Int>
ROPE_INLINE void fill_heads(Arithmetic<T> value, const Section<Int>& s, int head, UnitPointers<Vector<T, kWidth>> to) {
  Vector<T, kWidth> x[2];
  fill(value, &x[0]);
  fill(value, &x[1]);
  for (; head < s.heads; head += static_cast<int>(s.head_step.by)) {
    write_unit(x, to);
    to = advanced(to, s.out_step);
  }
}

// Rotates or copies a unit of a thread's heads. thread: index in the round. kWidth: plan.width. kSource: p.source.
template <class T, int kWidth, Source kSource>
ROPE_INLINE void rotate_thread(const RotateArguments<IntOf<kWidth>>& a, int round, IntOf<kWidth> thread) {
  using Int = IntOf<kWidth>;
  using Access = Vector<T, kWidth>;
  constexpr bool kTables = kSource != Source::kFrequencies;
  const Section<Int>& s = a.sections[section_of(a, thread)];
  Coordinates at;
  if (!coordinates_of(a, s, round * s.threads + (thread - s.first_thread), &at)) return;

  // The position is loaded first, because the loads of cos and sin, and so everything else, depend on it.
  const bool looks_up = kTables && a.rows != Rows::kToken;
  Lookup found = {};
  if (looks_up) found = lookup_of(a, at);
  if (!kTables) found.start = sequence_start(a.positions, at.token);

  const bool rotates = at.unit < a.rotated_units;
  const UnitOffsets unit = rotates ? rotated_offsets(a.rotary_offset, a.in, at.unit)
                                   : copied_offsets(a, s.copied, at.unit - a.rotated_units);
  auto in = first_unit<const Access>(s.in, s.in_stride, at, unit);
  Access x[2][2];  // the units of two heads, or of one
  int head = at.first_head;
  bool two;
  const auto read_heads = [&] {
    two = head + s.head_step.by < s.heads;
    read_unit(in, x[0]);
    if (two) read_unit(advanced(in, s.in_step), x[1]);
  };
  read_heads();

  Int row = at.token + a.offset;
  if (looks_up) {
    row = row_of(a, at, found);
    if (rotates && row == kOutside) {  // such a row is not read
      return fill_heads<T>(NAN, s, head, first_unit<Access>(s.out, s.out_stride, at, unit));
    }
  }
  const bool rotated = rotates && (kTables ? row >= 0 : found.start != kNotRotated);
  Angles<Arithmetic<T>, kWidth, kSource> angles;
  if (rotated) {
    const UnitPairs pairs = unit_pairs(a, at.unit);
    if constexpr (kTables) {
      read_angles<T>(a, EntryIndex<Int>{at.batch, row, at.first_head, pairs}, &angles);
    } else {
      make_angles(a, at.batch, at.token, found.start, at.first_head, pairs, &angles);
    }
  }

  // A token that is not rotated keeps its pairing too.
  const bool stays = a.rotating != Rotating::kOther || !rotated;
  const UnitOffsets out_unit = stays ? unit : rotated_offsets(a.rotary_offset, a.out, at.unit);
  auto out = first_unit<Access>(s.out, s.out_stride, at, out_unit);
  while (true) {
    if (rotated) rotate_units(angles, a, two, x);
    write_unit(x[0], out);
    if (!two) return;
    write_unit(x[1], advanced(out, s.out_step));
    head += 2 * static_cast<int>(s.head_step.by);
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
    if (plan.width == kWidest) return run_width<kWidest, T>(p, run);
    if constexpr (sizeof(T) == 2) {
      if (plan.width == 2) return run_width<2, T>(p, run);
    }
    run_width<1, T>(p, run);
  });
}

// Calls `run` with the instance for a call in which a tensor is normalized: accesses of 16 bytes, or of one element,
// whose kernels ignore the source of the instance.
template <class Run>
void run_norm_instance(const RotateParams& p, const Plan& plan, const Run& run) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (plan.width > 1) return run_width<16 / sizeof(T), T>(p, run);
    run(Instance<T, 1, Source::kPerPair>{});
  });
}

}  // namespace rope::cuda
