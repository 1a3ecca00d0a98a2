// Loads or computes cos and sin of a token's pairs, in the lane order in which rows of x are loaded.
#pragma once

#include <cmath>
#include <initializer_list>

#include "core/angles.h"
#include "core/dispatch.h"
#include "core/params.h"
#include "cpu/rows.h"

namespace rope::cpu {
namespace {

// Pairs per block; their cos/sin stay in L1, already converted.
constexpr int64_t kPairBlock = 128;

// cos and sin for the two channels of each pair of a block, in the arithmetic type, padded with zeros to whole vectors.
// Entries for the second channel are loaded only from tables with one entry per channel.
template <class A>
struct Angles {
  alignas(64) A entries[4][kPairBlock];  // cos and sin for the first channel, cos and sin for the second
  bool per_channel;

  const A* cos_first() const { return entries[0]; }
  const A* sin_first() const { return entries[1]; }
  const A* cos_second() const { return entries[per_channel ? 2 : 0]; }
  const A* sin_second() const { return entries[per_channel ? 3 : 1]; }
};

// Converts lanes from pair order to the lane order of load_pairs.
template <Access kAccess, class L>
ROPE_INLINE L ordered(L pairs) {
  return kAccess == Access::kInterleaved ? interleaved_from_pair_order(pairs) : run_from_pair_order(pairs);
}

// Loads n contiguous entries, of the arithmetic type or of the type of x, in the lane order of load_pairs, padded with
// zeros to whole steps. The low 16 bits of each NaN become zero: see bfloat16_rounded.
template <class T, Access kAccess, class E>
void load_contiguous(const E* from, int64_t n, bool negate, Arithmetic<T>* to) {
  for_each_step<T>(n, [&](auto full, int64_t i, int64_t m) {
    Lanes<T> v;
    if constexpr (std::is_same_v<E, Arithmetic<T>>) {
      v = ordered<kAccess>(read_lanes<Lanes<T>, full>(from + i, m));
    } else {
      v = Elements<T>::unpack(read<typename Elements<T>::Packed, full>(from + i, m * sizeof(T)));
      if (kAccess == Access::kInterleaved) v = interleaved_from_pair_order(pair_from_run_order(v));
    }
    v = without_payload(v);
    write_lanes(to + i, negate ? -v : v);
  });
}

template <class T, Access kAccess, class E>
void load_entries(const E* from, int64_t stride, int64_t n, bool negate, Arithmetic<T>* to) {
  if (stride == 1) return load_contiguous<T, kAccess>(from, n, negate, to);
  for (int64_t i = 0; i < n; ++i) to[i] = widen(from[i * stride]);
  load_contiguous<T, kAccess>(to, n, negate, to);
}

// Computes cos and sin of n pairs of a token from its positions. sin_scaling: the factor on sin, attention_scaling or
// its negative.
template <class A>
void make_entries(const Frequencies& f, const Positions& positions, double sin_scaling, int64_t batch, int64_t token,
                  int64_t start, int64_t head, int64_t begin, int64_t n, A* cos, A* sin) {
  A high[kPairBlock], low[kPairBlock];
  for (int64_t axis = 0; axis < f.axes; ++axis) {
    const A* frequency_high = at<A>(f.high.data, entry(f.high, axis, head, begin));
    const A* frequency_low = at<A>(f.low.data, entry(f.low, axis, head, begin));
    const Two<A> position = position_of<A>(positions, batch, token, start, axis);
    const auto finish = [&](Two<A> revolutions, int64_t i) {
      const CosSin<A> made = cos_sin(revolutions);
      cos[i] = made.cos;
      sin[i] = made.sin;
    };
    if (f.axes == 1 && position.high == 0) {  // the common case: a single term
      for (int64_t i = 0; i < n; ++i)
        finish(revolutions_of(position.low, Two<A>{frequency_high[i], frequency_low[i]}), i);
      continue;
    }
    for (int64_t i = 0; i < n; ++i) {
      const Two<A> before = axis ? Two<A>{high[i], low[i]} : Two<A>{};
      const Two<A> sum = add_revolutions(before, position, Two<A>{frequency_high[i], frequency_low[i]});
      high[i] = sum.high;
      low[i] = sum.low;
    }
    if (axis + 1 < f.axes) continue;
    for (int64_t i = 0; i < n; ++i) finish(Two<A>{high[i], low[i]}, i);
  }
  const A cos_scale = static_cast<A>(f.attention_scaling), sin_scale = static_cast<A>(sin_scaling);
  if (cos_scale == 1 && sin_scale == 1) return;  // saves two of forty operations per pair
  for (int64_t i = 0; i < n; ++i) {
    cos[i] *= cos_scale;
    sin[i] *= sin_scale;
  }
}

// Loads or computes the angles of n pairs. row: the result of table_row, which must not be kNotRotated; with
// frequencies, the start of the sequence. A row outside the table is not read: its entries become NaN.
template <class T, Access kAccess, class A>
void load_angles(const RotateParams& p, int64_t batch, int64_t token, int64_t row, int64_t head, int64_t begin,
                 int64_t n, A (&to)[4][kPairBlock]) {
  const auto load = [&](const Table& table, const void* data, bool negate, A* entries) {
    if (row == kOutside) {
      for (int64_t i = 0; i < kPairBlock; ++i) entries[i] = static_cast<A>(NAN);
      return;
    }
    const int64_t from = entry(table, batch, row, head, begin), stride = table.pair_stride;
    if (p.table_dtype == p.dtype) return load_entries<T, kAccess>(at<T>(data, from), stride, n, negate, entries);
    load_entries<T, kAccess>(at<A>(data, from), stride, n, negate, entries);
  };
  if (p.source == Source::kFrequencies) {
    const double scaling = p.frequencies.attention_scaling;
    make_entries(p.frequencies, p.positions, p.negate_sin ? -scaling : scaling, batch, token, row, head, begin, n,
                 to[0], to[1]);
    for (A* entries : {to[0], to[1]}) {
      for (int64_t i = n; i % kStep<T>; ++i) entries[i] = 0;
      for (int64_t i = 0; i < n; i += kStep<T>) {
        write_lanes(entries + i, ordered<kAccess>(read_lanes<Lanes<T>>(entries + i)));
      }
    }
    return;
  }
  load(p.cos, p.cos.first, false, to[0]);
  load(p.sin, p.sin.first, p.negate_sin, to[1]);
  if (p.source == Source::kPerPair) return;
  load(p.cos, p.cos.second, false, to[2]);
  load(p.sin, p.sin.second, p.negate_sin, to[3]);
}

// ---- cos_sin ----

template <class A>
void cos_sin_token(const CosSinParams& p, int64_t batch, int64_t token) {
  const int64_t start = sequence_start(p.positions, token), at_token = batch * p.seqlen + token;
  for (int64_t head = 0; head < p.heads; ++head) {
    const int64_t to = (at_token * p.heads + head) * p.pairs;
    A *cos = at<A>(p.cos_out, to), *sin = at<A>(p.sin_out, to);
    for (int64_t begin = 0; begin < p.pairs; begin += kPairBlock) {
      const int64_t n = p.pairs - begin < kPairBlock ? p.pairs - begin : kPairBlock;
      if (start == kNotRotated) {
        for (int64_t i = begin; i < begin + n; ++i) cos[i] = 1, sin[i] = 0;
      } else {
        make_entries(p.frequencies, p.positions, p.frequencies.attention_scaling, batch, token, start, head, begin, n,
                     cos + begin, sin + begin);
      }
    }
  }
  for (int64_t axis = 0; axis < p.frequencies.axes; ++axis) {
    const Two<A> position = start == kNotRotated ? Two<A>{} : position_of<A>(p.positions, batch, token, start, axis);
    *at<A>(p.positions_out, axis * p.batch * p.seqlen + at_token) = position.high + position.low;
  }
}

}  // namespace
}  // namespace rope::cpu
