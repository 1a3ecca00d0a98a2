// cos and sin of a thread's pairs, from tables or positions to registers; table entries back to memory; cos_sin.
#pragma once

#include <cmath>

#include "core/angles.h"
#include "core/math.h"
#include "core/params.h"
#include "cuda/plan.h"
#include "cuda/vector.cuh"

namespace rope::cuda {

// kSource: a template parameter, because it decides register use. One entry per channel takes twice as many registers,
// and computing entries from positions takes more than reading them.
template <class A, int kPairs, Source kSource>
struct Angles {
  static constexpr int kEntries = kSource == Source::kPerChannel ? 2 : 1;  // per pair
  A cos[kEntries][kPairs], sin[kEntries][kPairs];
};

template <class A, int kEntries, int kPairs>
ROPE_INLINE Pair<A> entries_of(const A (&table)[kEntries][kPairs], int pair) {
  return {table[0][pair], table[kEntries - 1][pair]};
}

template <int kCount, class E>
ROPE_INLINE void read_strided(const E* from, int64_t stride, E* to) {
  ROPE_UNROLL
  for (int i = 0; i < kCount; ++i) to[i] = from[i * stride];
}

// Issues the loads of all cos and sin before it uses any of them.
template <class E, int kPairs, class A>
ROPE_INLINE void load_entries(const RotateParams& p, bool vectors, const E* cos, const E* sin, A* to_cos, A* to_sin) {
  constexpr int kWidth = kPairs * sizeof(E) > 16 ? 16 / sizeof(E) : kPairs, kVectors = kPairs / kWidth;
  E c[kPairs], s[kPairs];
  if (vectors) {
    Vector<E, kWidth> cos_vectors[kVectors], sin_vectors[kVectors];
    ROPE_UNROLL
    for (int i = 0; i < kVectors; ++i) cos_vectors[i] = read<kWidth>(cos + i * kWidth);
    ROPE_UNROLL
    for (int i = 0; i < kVectors; ++i) sin_vectors[i] = read<kWidth>(sin + i * kWidth);
    ROPE_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      unpack(cos_vectors[i], c + i * kWidth);
      unpack(sin_vectors[i], s + i * kWidth);
    }
  } else {
    read_strided<kPairs>(cos, p.cos.pair_stride, c);
    read_strided<kPairs>(sin, p.sin.pair_stride, s);
  }
  ROPE_UNROLL
  for (int i = 0; i < kPairs; ++i) {
    to_cos[i] = widened(c[i]);
    to_sin[i] = p.negate_sin ? -widened(s[i]) : widened(s[i]);
  }
}

// Whether cos and sin have the type T of x; else they have its type of arithmetic.
template <class T>
ROPE_INLINE bool table_like_x(const Rotation& p) {
  return sizeof(T) == sizeof(Arithmetic<T>) || p.table_dtype == p.dtype;
}

// Loads the entries for one channel of each pair. cos, sin: offset of the first entry, in elements.
template <class T, int kPairs, class A>
ROPE_INLINE void load_entries(const RotateParams& p, const Plan& plan, const void* cos_data, int64_t cos,
                              const void* sin_data, int64_t sin, A (&to_cos)[kPairs], A (&to_sin)[kPairs]) {
  if (table_like_x<T>(p)) {
    load_entries<T, kPairs>(p, plan.table_vectors, at<T>(cos_data, cos), at<T>(sin_data, sin), to_cos, to_sin);
  } else {
    load_entries<A, kPairs>(p, plan.table_vectors, at<A>(cos_data, cos), at<A>(sin_data, sin), to_cos, to_sin);
  }
}

template <class T>
ROPE_INLINE void write_entry(const TableGradParams& p, void* data, int64_t offset, Arithmetic<T> value) {
  if (table_like_x<T>(p)) {
    *at<T>(data, offset) = narrowed<T>(value);
  } else {
    *at<Arithmetic<T>>(data, offset) = value;
  }
}

template <class A, int kPairs, Source kSource>
ROPE_INLINE void fill(A value, Angles<A, kPairs, kSource>* to) {
  ROPE_UNROLL
  for (int i = 0; i < kPairs; ++i) {
    for (int j = 0; j < to->kEntries; ++j) to->cos[j][i] = to->sin[j][i] = value;
  }
}

// cos and sin of one pair at a token, from its positions.
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

// The angles of kPairs pairs, from tables or positions. row: the result of table_row; with frequencies the start of the
// sequence or kNotRotated. A row outside the table is not read: its entries are NaN.
template <class T, int kPairs, Source kSource>
ROPE_INLINE void load_angles(const RotateParams& p, const Plan& plan, int64_t batch, int64_t token, int64_t row,
                             int64_t head, int64_t pair, Angles<Arithmetic<T>, kPairs, kSource>* to) {
  if (row == kNotRotated) return;
  if constexpr (kSource == Source::kFrequencies) {
    ROPE_UNROLL
    for (int i = 0; i < kPairs; ++i) {
      const auto made =
          make_entries<Arithmetic<T>>(p.frequencies, p.positions, p.negate_sin, batch, token, row, head, pair + i);
      to->cos[0][i] = made.cos;
      to->sin[0][i] = made.sin;
    }
  } else {
    if (row == kOutside) return fill(static_cast<Arithmetic<T>>(NAN), to);
    const int64_t cos = entry(p.cos, batch, row, head, pair), sin = entry(p.sin, batch, row, head, pair);
    load_entries<T>(p, plan, p.cos.first, cos, p.sin.first, sin, to->cos[0], to->sin[0]);
    if constexpr (kSource == Source::kPerChannel) {
      load_entries<T>(p, plan, p.cos.second, cos, p.sin.second, sin, to->cos[1], to->sin[1]);
    }
  }
}

// ---- cos_sin ----

// Heads of the grid: with zero heads, one, whose threads write only the positions.
ROPE_INLINE int64_t entry_heads(const CosSinParams& p) { return p.heads ? p.heads : 1; }
ROPE_INLINE int64_t cos_sin_threads(const CosSinParams& p) { return p.batch * p.seqlen * entry_heads(p) * p.pairs; }

// A thread writes one entry of cos and of sin, and for the first entry of a token its positions too.
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
