// Loads or computes cos and sin of a thread's pairs, in registers; the work of a thread of cos_sin.
#pragma once

#include <cmath>

#include "core/angles.h"
#include "core/dispatch.h"
#include "core/math.h"
#include "core/params.h"
#include "cuda/plan.h"
#include "cuda/vector.cuh"

namespace rope::cuda {

// kSource is a template parameter because it determines register use: one entry per channel takes twice as many
// registers as one per pair, and computing entries takes more than reading them.
template <class A, int kPairs, Source kSource>
struct Angles {
  static constexpr int kEntries = kSource == Source::kPerChannel ? 2 : 1;  // per pair
  A cos[kEntries][kPairs], sin[kEntries][kPairs];
};

template <class A, int kEntries, int kPairs>
ROPE_INLINE Pair<A> entries_of(const A (&table)[kEntries][kPairs], int pair) {
  return {table[0][pair], table[kEntries - 1][pair]};
}

// The pairs of a unit form two runs of consecutive pairs, each half of them. In most units the second run follows the
// first.
struct UnitPairs {
  int first, second;  // the first pair of each run
};

template <class Int>
ROPE_INLINE UnitPairs unit_pairs(const RotateArguments<Int>& a, int unit) {
  const int first = unit * a.unit_pairs;
  return {first, first + a.second_run};
}

// The i-th of the kPairs pairs of a unit.
template <int kPairs>
ROPE_INLINE int pair_of(const UnitPairs& pairs, int i) {
  constexpr int kRun = (kPairs + 1) / 2;
  return i < kRun ? pairs.first + i : pairs.second + i - kRun;
}

// Issues the loads of all entries of cos and sin before it uses any of them. second_run: the distance of the second run
// from cos and sin, in entries.
template <class E, int kPairs, class A>
ROPE_INLINE void read_vectors(const E* cos, const E* sin, int second_run, A (&to_cos)[kPairs], A (&to_sin)[kPairs]) {
  constexpr int kRun = kPairs / 2, kWidth = kRun * sizeof(E) > 16 ? 16 / sizeof(E) : kRun, kVectors = kRun / kWidth;
  Vector<E, kWidth> c[2][kVectors], s[2][kVectors];
  const auto read_run = [](const E* from, Vector<E, kWidth>(&to)[kVectors]) {
    ROPE_UNROLL
    for (int i = 0; i < kVectors; ++i) to[i] = read(vectors_at<kWidth>(from) + i);
  };
  read_run(cos, c[0]);
  read_run(cos + second_run, c[1]);
  read_run(sin, s[0]);
  read_run(sin + second_run, s[1]);
  ROPE_UNROLL
  for (int i = 0; i < 2 * kVectors; ++i) {
    widen_vector(c[i / kVectors][i % kVectors], to_cos + i * kWidth);
    widen_vector(s[i / kVectors][i % kVectors], to_sin + i * kWidth);
  }
}

// Identifies entries of cos and sin: a row of the table, and the pairs of a unit.
template <class Int>
struct EntryIndex {
  int batch;
  Int row;
  int head;
  UnitPairs pairs;
};

// The offset of a row, in elements.
template <class Int>
ROPE_INLINE Int row_offset(const TableArguments<Int>& t, const EntryIndex<Int>& at) {
  return at.batch * t.batch_stride + at.row * t.row_stride + at.head * t.head_stride;
}

template <class Int, class E, int kPairs, class A>
ROPE_INLINE void read_strided(const E* cos, Int cos_stride, const E* sin, Int sin_stride, const UnitPairs& pairs,
                              A (&to_cos)[kPairs], A (&to_sin)[kPairs]) {
  E c[kPairs], s[kPairs];
  ROPE_UNROLL
  for (int i = 0; i < kPairs; ++i) c[i] = cos[pair_of<kPairs>(pairs, i) * cos_stride];
  ROPE_UNROLL
  for (int i = 0; i < kPairs; ++i) s[i] = sin[pair_of<kPairs>(pairs, i) * sin_stride];
  ROPE_UNROLL
  for (int i = 0; i < kPairs; ++i) {
    to_cos[i] = widened(c[i]);
    to_sin[i] = widened(s[i]);
  }
}

// Loads the entries for one channel of each pair.
template <class T, class Int, int kPairs, class A>
ROPE_INLINE void load_entries(const RotateArguments<Int>& a, const void* cos, const void* sin,
                              const EntryIndex<Int>& index, A (&to_cos)[kPairs], A (&to_sin)[kPairs]) {
  const auto strided = [&](auto tag) {
    using E = typename decltype(tag)::type;
    read_strided(at<E>(cos, row_offset(a.cos, index)), a.cos.pair_stride, at<E>(sin, row_offset(a.sin, index)),
                 a.sin.pair_stride, index.pairs, to_cos, to_sin);
  };
  const auto vectors = [&](auto tag) {
    using E = typename decltype(tag)::type;
    const Int first = row_offset(a.cos, index) + index.pairs.first;
    read_vectors(at<E>(cos, first), at<E>(sin, first), a.second_run, to_cos, to_sin);
  };
  constexpr bool kMayBeLikeX = sizeof(T) < sizeof(A), kMayBeVectors = kPairs > 1;
  if constexpr (kMayBeVectors) {
    if (a.tables == Tables::kVectors) return vectors(TypeTag<A>{});
    if (kMayBeLikeX && a.tables == Tables::kVectorsLikeX) return vectors(TypeTag<T>{});
  }
  if (kMayBeLikeX && a.tables == Tables::kStridedLikeX) return strided(TypeTag<T>{});
  strided(TypeTag<A>{});
}

// Computes cos and sin of one pair of a token from its positions.
template <class A>
ROPE_INLINE CosSin<A> make_entries(const Frequencies& f, const Positions& positions, bool negate_sin, int64_t batch,
                                   int64_t token, int64_t start, int64_t head, int64_t pair) {
  Two<A> revolutions = {};
  for (int64_t axis = 0; axis < f.axes; ++axis) {
    const Two<A> frequency = {*at<A>(f.high.data, entry(f.high, axis, head, pair)),
                              *at<A>(f.low.data, entry(f.low, axis, head, pair))};
    const Two<A> position = position_of<A>(positions, batch, token, start, axis);
    revolutions = add_revolutions(revolutions, position, frequency);
  }
  CosSin<A> made = cos_sin(revolutions);
  const A scale = static_cast<A>(f.attention_scaling);
  made.cos *= scale;
  made.sin *= negate_sin ? -scale : scale;
  return made;
}

// Reads the angles of kPairs pairs from tables. For a rotation by the negative angle, sin is negated.
template <class T, int kPairs, Source kSource, class Int>
ROPE_INLINE void read_angles(const RotateArguments<Int>& a, const EntryIndex<Int>& index,
                             Angles<Arithmetic<T>, kPairs, kSource>* to) {
  load_entries<T>(a, a.cos.first, a.sin.first, index, to->cos[0], to->sin[0]);
  if constexpr (kSource == Source::kPerChannel) {
    load_entries<T>(a, a.cos.second, a.sin.second, index, to->cos[1], to->sin[1]);
  }
  if (!a.negate_sin) return;
  ROPE_UNROLL
  for (int i = 0; i < to->kEntries * kPairs; ++i) {
    Arithmetic<T>& entry = to->sin[i / kPairs][i % kPairs];
    entry = -entry;
  }
}

// Computes the angles of kPairs pairs from the position of a token. start: the result of sequence_start.
template <class Int, class A, int kPairs, Source kSource>
ROPE_INLINE void make_angles(const RotateArguments<Int>& a, int batch, int token, int64_t start, int head,
                             const UnitPairs& pairs, Angles<A, kPairs, kSource>* to) {
  ROPE_UNROLL
  for (int i = 0; i < kPairs; ++i) {
    const auto made =
        make_entries<A>(a.frequencies, a.positions, a.negate_sin, batch, token, start, head, pair_of<kPairs>(pairs, i));
    to->cos[0][i] = made.cos;
    to->sin[0][i] = made.sin;
  }
}

// ---- cos_sin ----

// Heads in the grid. Zero heads count as one, whose threads write only the positions.
ROPE_INLINE int64_t entry_heads(const CosSinParams& p) { return p.heads ? p.heads : 1; }
ROPE_INLINE int64_t cos_sin_threads(const CosSinParams& p) { return p.batch * p.seqlen * entry_heads(p) * p.pairs; }

// A thread writes one entry of cos and of sin. The thread of a token's first entry also writes its positions.
template <class A>
ROPE_INLINE void cos_sin_thread(const CosSinParams& p, int64_t index) {
  if (index >= cos_sin_threads(p)) return;
  const int64_t heads = entry_heads(p), pair = index % p.pairs, head = index / p.pairs % heads;
  const int64_t at_token = index / p.pairs / heads, batch = at_token / p.seqlen, token = at_token % p.seqlen;
  const int64_t start = sequence_start(p.positions, token);
  if (p.heads) {
    const CosSin<A> made = start == kNotRotated
                               ? CosSin<A>{1, 0}
                               : make_entries<A>(p.frequencies, p.positions, false, batch, token, start, head, pair);
    *at<A>(p.cos_out, index) = made.cos;
    *at<A>(p.sin_out, index) = made.sin;
  }
  if (pair || head) return;
  for (int64_t axis = 0; axis < p.frequencies.axes; ++axis) {
    const Two<A> position = start == kNotRotated ? Two<A>{} : position_of<A>(p.positions, batch, token, start, axis);
    *at<A>(p.positions_out, axis * p.batch * p.seqlen + at_token) = position.high + position.low;
  }
}

}  // namespace rope::cuda
