// The rotation of one token: cos and sin are loaded once for the rows of all heads that share them.
#pragma once

#include "core/math.h"
#include "core/params.h"
#include "cpu/angles.h"
#include "cpu/plan.h"
#include "cpu/rows.h"

namespace rope::cpu {
namespace {

// `count` rows of one tensor that share angles.
template <class T>
struct Rows {
  const T* in;
  T* out;
  int64_t in_stride, out_stride, count;
  Pairing from, to;  // of in and out, in elements
  int64_t prefetch;  // as in Plan
};

// The rows of the first token of tensor t: of all heads, or of one where each has angles of its own.
template <class T>
Rows<T> rows_of(const RotateParams& p, const Plan& plan, int t) {
  const RotatedTensor& x = p.x[t];
  const auto in = token_row<const T>(p.rotary_offset, x.in, x.in_stride, p.pairing, 0, 0, 0);
  const auto out = token_row<T>(p.rotary_offset, x.out, x.out_stride, p.out_pairing, 0, 0, 0);
  const int64_t count = p.table_heads == 1 ? x.heads : 1;
  return {in.data, out.data, in.head_stride, out.head_stride, count, in.pairing, out.pairing, plan.prefetch[t]};
}

// Rotates two vectors of interleaved channels, which stay in their lanes: only the partners are moved. cos and sin have
// an entry per channel; that of sin for the second channel of a pair is negated, as x - y * -s rounds like x + y * s.
template <class L, class Round>
ROPE_INLINE Pair<L> rotate_channels(Pair<L> x, Pair<L> cos, Pair<L> sin, const Round& round) {
  const auto rotated = [&](L x, L cos, L sin) {
    return rotate_pair(Pair<L>{x, exchange_neighbours(x)}, Pair<L>{cos, cos}, Pair<L>{sin, sin}, round).first;
  };
  return {rotated(x.first, cos.first, sin.first), rotated(x.second, cos.second, sin.second)};
}

// Rotates kSteps steps of kStep pairs of each row, from pair i on; without kFull, the last pairs of n, less than a
// step. cos and sin stay in registers over all rows: reading them from L1 for each row takes 15 to 40 % more time
// (AVX-512, 0.3 MiB in bfloat16 and float16).
template <Access kAccess, bool kNonTemporal, bool kRoundProducts, bool kFull, int kSteps, class T>
ROPE_INLINE void rotate_steps(const Rows<T>& rows, const Angles<Arithmetic<T>>& angles, int64_t i, int64_t n) {
  using L = Lanes<T>;
  // 10 to 30 % faster in cache and in 16 bits; non-temporal stores of wider elements take up to 7 % longer.
  constexpr bool kByChannel =
      kAccess == Access::kInterleaved && std::is_same_v<L, Vector<Arithmetic<T>>> && (sizeof(T) == 2 || !kNonTemporal);
  const auto round = [](L product) {
    using E = Elements<T>;
    return kRoundProducts ? E::unpack(E::pack(product)) : product;
  };
  Pair<L> cos[kSteps], sin[kSteps];
  for (int s = 0; s < kSteps; ++s) {
    const int64_t at = i + s * kStep<T>;
    cos[s] = {read_lanes<L>(angles.cos_first() + at), read_lanes<L>(angles.cos_second() + at)};
    sin[s] = {read_lanes<L>(angles.sin_first() + at), read_lanes<L>(angles.sin_second() + at)};
    if constexpr (kByChannel) {
      cos[s] = interleave(cos[s].first, cos[s].second);
      sin[s] = interleave(sin[s].first, -sin[s].second);
    }
  }
  const Pairing from = known<kAccess>(rows.from), to = known<kAccess>(rows.to);
  const int64_t m = kFull ? kStep<T> : n - i, row_bytes = 2 * n * sizeof(T);
  const T* in = rows.in + i * from.step;
  T* out = rows.out + i * to.step;
  for (int64_t r = 0; r < rows.count; ++r, in += rows.in_stride, out += rows.out_stride) {
    if (rows.prefetch && i == 0) {
      const char* next = reinterpret_cast<const char*>(in) + rows.prefetch;
      for (int64_t at = 0; at < row_bytes; at += 64) __builtin_prefetch(next + at);
    }
    for (int s = 0; s < kSteps; ++s) {
      const int64_t at = s * kStep<T>;
      if constexpr (kByChannel) {
        const auto x = load_channels<kFull>(in + at * from.step, m);
        store_channels<kFull, kNonTemporal>(rotate_channels(x, cos[s], sin[s], round), out + at * to.step, m);
      } else {
        const auto x = load_pairs<kAccess, kFull>(in + at * from.step, from, m);
        store_pairs<kAccess, kFull, kNonTemporal>(rotate_pair(x, cos[s], sin[s], round), out + at * to.step, to, m);
      }
    }
  }
}

// Rotates the n pairs of each row, as many steps at once as there are registers for.
template <Access kAccess, bool kNonTemporal, bool kRoundProducts, class T>
void rotate_rows(const Rows<T>& rows, const Angles<Arithmetic<T>>& angles, int64_t n) {
  constexpr int64_t k = kStep<T>;
  constexpr int kMost = kAccess == Access::kAny ? 1 : 4;
  int64_t i = 0;
  for (; i + kMost * k <= n; i += kMost * k) {
    rotate_steps<kAccess, kNonTemporal, kRoundProducts, true, kMost>(rows, angles, i, n);
  }
  if (kMost > 2 && i + 2 * k <= n) {
    rotate_steps<kAccess, kNonTemporal, kRoundProducts, true, 2>(rows, angles, i, n);
    i += 2 * k;
  }
  if (kMost > 1 && i + k <= n) {
    rotate_steps<kAccess, kNonTemporal, kRoundProducts, true, 1>(rows, angles, i, n);
    i += k;
  }
  if (i < n) rotate_steps<kAccess, kNonTemporal, kRoundProducts, false, 1>(rows, angles, i, n);
}

// Copies channels [begin, end) of every head of a token, bit for bit.
template <class T>
void copy_channels(const RotatedTensor& x, int64_t batch, int64_t token, int64_t begin, int64_t end) {
  if (x.in == x.out || begin >= end) return;
  const Strides &from = x.in_stride, &to = x.out_stride;
  for (int64_t h = 0; h < x.heads; ++h) {
    const T* in = at<T>(x.in, row_offset(from, batch, token, h) + begin * from.channel);
    T* out = at<T>(x.out, row_offset(to, batch, token, h) + begin * to.channel);
    if (from.channel == 1 && to.channel == 1) {
      memcpy(out, in, (end - begin) * sizeof(T));
    } else {
      for (int64_t c = 0; c < end - begin; ++c) out[c * to.channel] = in[c * from.channel];
    }
  }
}

// tensors: the rows_of every tensor.
template <Access kAccess, bool kNonTemporal, class T>
void rotate_token(const RotateParams& p, const Rows<T>* tensors, int64_t batch, int64_t token) {
  const int64_t row =
      p.source == Source::kFrequencies ? sequence_start(p.positions, token) : table_row(p.positions, batch, token);
  const int64_t pairs = row == kNotRotated ? 0 : p.pairs;
  for (int t = 0; t < p.num_tensors; ++t) {
    const RotatedTensor& x = p.x[t];
    if (x.in == x.out || 2 * pairs == x.head_dim) continue;
    copy_channels<T>(x, batch, token, 0, pairs ? p.rotary_offset : x.head_dim);
    if (pairs) copy_channels<T>(x, batch, token, p.rotary_offset + 2 * pairs, x.head_dim);
  }
  Angles<Arithmetic<T>> angles;
  angles.per_channel = p.source == Source::kPerChannel;
  for (int64_t head = 0; head < p.table_heads; ++head) {
    for (int64_t begin = 0; begin < pairs; begin += kPairBlock) {
      const int64_t n = pairs - begin < kPairBlock ? pairs - begin : kPairBlock;
      load_angles<T, kAccess>(p, batch, token, row, head, begin, n, angles.entries);
      for (int t = 0; t < p.num_tensors; ++t) {
        Rows<T> rows = tensors[t];
        rows.in += row_offset(p.x[t].in_stride, batch, token, head) + begin * rows.from.step;
        rows.out += row_offset(p.x[t].out_stride, batch, token, head) + begin * rows.to.step;
        if constexpr (sizeof(T) == 2) {  // a branch per vector would take 5 to 12 % longer with cached bfloat16
          if (p.round_products) {
            rotate_rows<kAccess, kNonTemporal, true>(rows, angles, n);
            continue;
          }
        }
        rotate_rows<kAccess, kNonTemporal, false>(rows, angles, n);
      }
    }
  }
}

}  // namespace
}  // namespace rope::cpu
