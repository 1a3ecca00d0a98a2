// The rotation of one token: cos and sin are loaded once for the rows of all heads that share them.
#pragma once

#include "core/math.h"
#include "core/params.h"
#include "cpu/angles.h"
#include "cpu/norm.h"
#include "cpu/plan.h"
#include "cpu/rows.h"

namespace rope::cpu {
namespace {

// `count` rows of one tensor that share angles. Out: T, or the arithmetic type if norm_grad keeps the result.
template <class T, class Out = T>
struct Rows {
  const T* in;
  Out* out;
  int64_t in_stride, out_stride, count;
  Pairing from = {}, to = {};  // of in and out, in elements
  int64_t prefetch = 0;        // as in Plan
  // For normalized rows: the weight of the first channel, and 1 / rms of the first row; else null.
  const Arithmetic<T>*weight = nullptr, *inv_rms = nullptr;
  Pairing channels = {};                                  // of the weights
  bool round_unweighted = false, round_products = false;  // with kEager
  bool in_run_order = false;  // if Out is not T: whole steps of it are in run order (elements.h)
};

// The rows of the first token of tensor t: all heads, or one if each head has its own angles.
template <class T>
Rows<T> rows_of(const RotateParams& p, const Plan& plan, int t) {
  const RotatedTensor& x = p.x[t];
  const auto in = token_row<const T>(p.rotary_offset, x.in, x.in_stride, p.pairing, 0, 0, 0);
  const auto out = token_row<T>(p.rotary_offset, x.out, x.out_stride, p.out_pairing, 0, 0, 0);
  Rows<T> rows = {in.data, out.data, in.head_stride, out.head_stride, p.table_heads == 1 ? x.heads : 1};
  rows.from = in.pairing;
  rows.to = out.pairing;
  rows.prefetch = plan.prefetch[t];
  if (const auto* weight = static_cast<const Arithmetic<T>*>(p.norm[t].weight)) {
    rows.weight = weight + p.rotary_offset;
    rows.channels = p.pairing;
    rows.round_unweighted = p.norm[t].round_unweighted;
    rows.round_products = p.round_products;
  }
  return rows;
}

// Rotates two vectors of interleaved channels, which stay in their lanes: only the partners are moved. cos and sin have
// one entry per channel. sin is negated for the second channel of a pair, because x - y * -s rounds like x + y * s.
template <class L, class Round>
ROPE_INLINE Pair<L> rotate_channels(Pair<L> x, Pair<L> cos, Pair<L> sin, const Round& round) {
  const auto rotated = [&](L x, L cos, L sin) {
    return rotate_pair(Pair<L>{x, exchange_neighbours(x)}, Pair<L>{cos, cos}, Pair<L>{sin, sin}, round).first;
  };
  return {rotated(x.first, cos.first, sin.first), rotated(x.second, cos.second, sin.second)};
}

// Rotates kSteps steps of kStep pairs of each row, from pair i on; without kFull, the tail of the n pairs, which is
// shorter than a step. cos and sin stay in registers across rows: reloading them from L1 for each row takes 15 to 40 %
// longer (AVX-512, 0.3 MiB in bfloat16 and float16).
//
// kNorm: the rows are normalized first. kEager: intermediate values are rounded to 16 bits as in eager code.
template <Access kAccess, bool kNonTemporal, bool kNorm, bool kEager, bool kFull, int kSteps, class T, class Out>
ROPE_INLINE void rotate_steps(const Rows<T, Out>& rows, const Angles<Arithmetic<T>>& angles, int64_t i, int64_t n) {
  using L = Lanes<T>;
  // Rotating channel by channel is 10 to 30 % faster on cached data and in 16 bits, but takes up to 7 % longer with
  // non-temporal stores of wider elements.
  constexpr bool kByChannel = kAccess == Access::kInterleaved && std::is_same_v<L, Vector<Arithmetic<T>>> &&
                              std::is_same_v<T, Out> && (sizeof(T) == 2 || !kNonTemporal);
  const int64_t m = kFull ? kStep<T> : n - i, row_bytes = 2 * n * sizeof(T);
  const auto round = [&](L product) {
    return kEager && (!kNorm || rows.round_products) ? rounded<T>(product) : product;
  };
  Pair<L> cos[kSteps], sin[kSteps], weight[kNorm ? kSteps : 1];
  for (int s = 0; s < kSteps; ++s) {
    const int64_t at = i + s * kStep<T>;
    cos[s] = {read_lanes<L>(angles.cos_first() + at), read_lanes<L>(angles.cos_second() + at)};
    sin[s] = {read_lanes<L>(angles.sin_first() + at), read_lanes<L>(angles.sin_second() + at)};
    if constexpr (kByChannel) {
      cos[s] = interleave(cos[s].first, cos[s].second);
      sin[s] = interleave(sin[s].first, -sin[s].second);
    }
    if constexpr (kNorm) {
      const Arithmetic<T>* from = rows.weight + at * known<kAccess>(rows.channels).step;
      if constexpr (kByChannel) {
        weight[s] = load_weight_channels<kFull, T>(from, m);
      } else {
        weight[s] = load_weights<kAccess, kFull, T>(from, rows.channels, m);
      }
    }
  }
  const Pairing from = known<kAccess>(rows.from), to = known<kAccess>(rows.to);
  const T* in = rows.in + i * from.step;
  Out* out = rows.out + i * to.step;
  for (int64_t r = 0; r < rows.count; ++r, in += rows.in_stride, out += rows.out_stride) {
    if (i == 0) prefetch_row(in, row_bytes, rows.prefetch);
    L scale;
    if constexpr (kNorm) scale = broadcast<L>(rows.inv_rms[r]);
    // Normalizes the channels of step s, if kNorm.
    const auto norm = [&](Pair<L> x, int s) {
      if constexpr (!kNorm) return x;
      const auto one = [&](L x, L weight) {
        const auto n =
            normalised(x, scale, weight, [&](L v) { return kEager && rows.round_unweighted ? rounded<T>(v) : v; });
        return kEager ? rounded<T>(n) : n;
      };
      return Pair<L>{one(x.first, weight[kNorm ? s : 0].first), one(x.second, weight[kNorm ? s : 0].second)};
    };
    for (int s = 0; s < kSteps; ++s) {
      const int64_t at = s * kStep<T>;
      Out* to_pairs = out + at * to.step;
      if constexpr (kByChannel) {
        const auto x = load_channels<kFull>(in + at * from.step, m);
        store_channels<kFull, kNonTemporal>(rotate_channels(norm(x, s), cos[s], sin[s], round), to_pairs, m);
      } else {
        const auto x = load_pairs<kAccess, kFull>(in + at * from.step, from, m);
        const auto y = rotate_pair(norm(x, s), cos[s], sin[s], round);
        if constexpr (std::is_same_v<T, Out>) {
          store_pairs<kAccess, kFull, kNonTemporal>(y, to_pairs, to, m);
        } else {
          const auto result = [](L v) { return kEager ? rounded<T>(v) : v; };
          keep_pairs<kAccess, kFull, T>({result(y.first), result(y.second)}, to_pairs, to, m, rows.in_run_order);
        }
      }
    }
  }
}

// Rotates the n pairs of each row, in as many steps at once as fit in registers.
template <Access kAccess, bool kNonTemporal, bool kNorm, bool kEager, class T, class Out>
void rotate_rows(const Rows<T, Out>& rows, const Angles<Arithmetic<T>>& angles, int64_t n) {
  constexpr int64_t k = kStep<T>;
  constexpr int kMost = kAccess == Access::kAny ? 1 : 4;
  const auto rotate = [&](auto full, auto steps, int64_t i) {
    rotate_steps<kAccess, kNonTemporal, kNorm, kEager, full.value, steps.value>(rows, angles, i, n);
  };
  int64_t i = 0;
  for (; i + kMost * k <= n; i += kMost * k) rotate(std::true_type{}, std::integral_constant<int, kMost>{}, i);
  if (kMost > 2 && i + 2 * k <= n) {
    rotate(std::true_type{}, std::integral_constant<int, 2>{}, i);
    i += 2 * k;
  }
  if (kMost > 1 && i + k <= n) {
    rotate(std::true_type{}, std::integral_constant<int, 1>{}, i);
    i += k;
  }
  if (i < n) rotate(std::false_type{}, std::integral_constant<int, 1>{}, i);
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

// Rotates n pairs of `rows`, with the norm and the rounding that the call requests.
template <Access kAccess, bool kNonTemporal, class T>
void rotate_rows(const RotateParams& p, const Rows<T>& rows, const Angles<Arithmetic<T>>& angles, int64_t n) {
  const auto rotate = [&](auto norm, auto eager) {
    rotate_rows<kAccess, kNonTemporal, norm.value, eager.value>(rows, angles, n);
  };
  // Template arguments, because a branch per vector takes 5 to 12 % longer on cached bfloat16.
  constexpr bool kNarrow = sizeof(T) == 2;
  using Eager = std::bool_constant<kNarrow>;
  if (rows.weight) {
    if (kNarrow && p.round_weighted) return rotate(std::true_type{}, Eager{});
    return rotate(std::true_type{}, std::false_type{});
  }
  if (kNarrow && p.round_products) return rotate(std::false_type{}, Eager{});
  rotate(std::false_type{}, std::false_type{});
}

// Copies the channels of every head that are not rotated, or normalizes them if r is not null. r: 1 / rms of each head.
// pairs: the rotated pairs, 0 for a token that is copied.
template <class T>
void keep_channels(const RotateParams& p, int t, int64_t batch, int64_t token, int64_t pairs, const Arithmetic<T>* r) {
  const RotatedTensor& x = p.x[t];
  const auto keep = [&](int64_t begin, int64_t end) {
    r ? normalise_channels<T>(x, p.norm[t], batch, token, begin, end, r)
      : copy_channels<T>(x, batch, token, begin, end);
  };
  if (2 * pairs == x.head_dim) return;
  keep(0, pairs ? p.rotary_offset : x.head_dim);
  if (pairs) keep(p.rotary_offset + 2 * pairs, x.head_dim);
}

// Rotates one token of all tensors. tensors: rows_of each tensor. factors: scratch memory for 1 / rms of the heads,
// room_for(heads) numbers for each normalized tensor.
template <Access kAccess, bool kNonTemporal, class T>
void rotate_token(const RotateParams& p, const Rows<T>* tensors, int64_t batch, int64_t token, Arithmetic<T>* factors) {
  const int64_t row =
      p.source == Source::kFrequencies ? sequence_start(p.positions, token) : table_row(p.positions, batch, token);
  const int64_t pairs = row == kNotRotated ? 0 : p.pairs;
  const Arithmetic<T>* inv_rms[kMaxTensors];
  for (int t = 0; t < p.num_tensors; ++t) {
    const RotatedTensor& x = p.x[t];
    inv_rms[t] = nullptr;
    if (p.norm[t].weight) {
      if (pairs) {
        inverse_rms_of_heads(at<T>(x.in, row_offset(x.in_stride, batch, token, 0)), x, p.eps, factors);
        inv_rms[t] = factors;
      }
      save_inverse_rms(p.norm[t], (batch * p.seqlen + token) * x.heads, x.heads, inv_rms[t]);
      factors += room_for<Arithmetic<T>>(x.heads);
    }
    keep_channels<T>(p, t, batch, token, pairs, inv_rms[t]);
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
        if (rows.weight) {
          rows.weight += begin * rows.channels.step;
          rows.inv_rms = inv_rms[t] + head;
        }
        rotate_rows<kAccess, kNonTemporal>(p, rows, angles, n);
      }
    }
  }
}

}  // namespace
}  // namespace rope::cpu
