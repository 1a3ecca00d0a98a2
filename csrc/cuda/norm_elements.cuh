// Norm and rotation for any head_dim, strides and weights: one warp per head, one element per access.
#pragma once

#include "core/math.h"
#include "core/norm.h"
#include "cuda/angles.cuh"
#include "cuda/norm_sum.cuh"
#include "cuda/table_grad.cuh"

namespace rope::cuda {

struct HeadIndex {
  int tensor;
  int64_t batch, token, head;
};

// Finds the head of a warp. Returns false if there is none.
ROPE_INLINE bool head_of_warp(const RotateParams& p, int64_t warp, HeadIndex* to) {
  for (int t = 0; t < p.num_tensors; ++t) {
    const int64_t heads = p.x[t].heads, token = warp / heads;
    if (token < p.batch * p.seqlen) {
      *to = {t, token / p.seqlen, token % p.seqlen, warp % heads};
      return true;
    }
    warp -= p.batch * p.seqlen * heads;
  }
  return false;
}

template <class T>
ROPE_INLINE T* first_channel(T* data, const Strides& s, const HeadIndex& head) {
  return data + head.batch * s.batch + head.token * s.token + head.head * s.head;
}

template <class T>
ROPE_INLINE Arithmetic<T> read_widened(const void* data, int64_t offset) {
  return widened(*rope::at<T>(data, offset));
}

// The weight of a channel in the arithmetic type. Not a switch, which nvcc would compile to a jump table.
template <class A>
ROPE_INLINE A weight_at(const Norm& norm, int64_t channel) {
  const int64_t offset = channel * norm.weight_stride;
  if (norm.weight_dtype == DType::kFloat64) return static_cast<A>(read_widened<double>(norm.weight, offset));
  if (norm.weight_dtype == DType::kFloat32) return read_widened<float>(norm.weight, offset);
  const uint16_t bits = *rope::at<uint16_t>(norm.weight, offset);
  return norm.weight_dtype == DType::kBFloat16 ? widened(BFloat16{bits}) : widened(Float16{bits});
}

// The rotation of a head, pair by pair.
template <class T>
struct HeadRotation {
  using A = Arithmetic<T>;
  const RotateParams& p;
  const HeadIndex& head;
  int64_t row;  // of the table; with frequencies, the start of the sequence

  ROPE_INLINE_MEMBER HeadRotation(const RotateParams& p, const HeadIndex& head)
      : p(p),
        head(head),
        row(p.source == Source::kFrequencies ? sequence_start(p.positions, head.token)
                                             : table_row(p.positions, head.batch, head.token)) {}

  // Whether the token is neither normalized nor rotated.
  ROPE_INLINE_MEMBER bool copied() const { return row == kNotRotated; }

  ROPE_INLINE_MEMBER Pair<A> entries(const Table& table, int64_t pair) const {
    const int64_t offset = entry(table, head.batch, row, head.head, pair);
    const auto read = [&](const void* data) {
      return table_like_x<T>(p) ? read_widened<T>(data, offset) : *rope::at<A>(data, offset);
    };
    return {read(table.first), read(table.second)};
  }

  ROPE_INLINE_MEMBER Pair<A> rotated(Pair<A> x, int64_t pair) const {
    const auto round = [&](A product) { return p.round_products ? widened(narrowed<T>(product)) : product; };
    if (p.source == Source::kFrequencies) {
      const auto made =
          make_entries<A>(p.frequencies, p.positions, p.negate_sin, head.batch, head.token, row, head.head, pair);
      return rotate_pair(x, {made.cos, made.cos}, {made.sin, made.sin}, round);
    }
    if (row == kOutside) return {static_cast<A>(NAN), static_cast<A>(NAN)};  // such a row is not read
    const Pair<A> cos = entries(p.cos, pair), sin = entries(p.sin, pair);
    return rotate_pair(x, cos, p.negate_sin ? Pair<A>{-sin.first, -sin.second} : sin, round);
  }
};

// The indices of the two channels of a pair.
ROPE_INLINE Pair<int64_t> channels_of(const Rotation& p, const Pairing& pairing, int64_t pair) {
  const int64_t first = p.rotary_offset + pair * pairing.step;
  return {first, first + pairing.partner};
}

// The index of the i-th channel that is not rotated.
ROPE_INLINE int64_t channel_outside(const Rotation& p, int64_t i) { return i < p.rotary_offset ? i : i + 2 * p.pairs; }

// One lane of the warp of a head, in two steps, as in NormLane: its share of the sum of squares, then everything else,
// given the sum.
template <class T>
struct NormElements {
  using A = Arithmetic<T>;
  const RotateParams& p;
  int lane;
  HeadIndex head;
  bool works;

  ROPE_INLINE_MEMBER NormElements(const RotateParams& p, int64_t warp, int lane)
      : p(p), lane(lane), works(head_of_warp(p, warp, &head)) {}

  ROPE_INLINE_MEMBER bool sums() const { return works && p.norm[head.tensor].weight != nullptr; }

  ROPE_INLINE_MEMBER A squares() const {
    if (!sums()) return 0;
    const RotatedTensor& x = p.x[head.tensor];
    const T* in = first_channel(static_cast<const T*>(x.in), x.in_stride, head);
    return sum_of_channels<A>(lane, x.head_dim, [&](int64_t channel) {
      const A value = widened(in[channel * x.in_stride.channel]);
      return value * value;
    });
  }

  ROPE_INLINE_MEMBER void finish(A sum_of_squares) const {
    if (!works) return;
    const RotatedTensor& x = p.x[head.tensor];
    const Norm& norm = p.norm[head.tensor];
    const HeadRotation<T> rotation(p, head);
    const bool normalises = sums() && !rotation.copied();
    const A r = normalises ? inverse_rms(sum_of_squares, static_cast<A>(x.head_dim), static_cast<A>(p.eps)) : A(0);
    if (sums() && norm.inv_rms && lane == 0) {
      *rope::at<A>(norm.inv_rms, (head.batch * p.seqlen + head.token) * x.heads + head.head) = r;
    }
    const T* in = first_channel(static_cast<const T*>(x.in), x.in_stride, head);
    T* out = first_channel(static_cast<T*>(x.out), x.out_stride, head);
    const auto read = [&](int64_t channel) { return in[channel * x.in_stride.channel]; };
    const auto write = [&](int64_t channel, T value) { out[channel * x.out_stride.channel] = value; };
    const auto rounded = [](bool rounds, A value) { return rounds ? widened(narrowed<T>(value)) : value; };
    const auto prepared = [&](int64_t channel) {
      const A value = widened(read(channel));
      if (!normalises) return value;
      const A n = normalised(value, r, weight_at<A>(norm, channel),
                             [&](A unweighted) { return rounded(norm.round_unweighted, unweighted); });
      return rounded(p.round_weighted, n);
    };
    for (int64_t pair = lane; pair < p.pairs; pair += kSumLanes) {
      const Pair<int64_t> from = channels_of(p, p.pairing, pair);
      if (rotation.copied()) {  // a copied token keeps its pairing
        const T first = read(from.first), second = read(from.second);
        write(from.first, first);
        write(from.second, second);
        continue;
      }
      const Pair<A> y = rotation.rotated({prepared(from.first), prepared(from.second)}, pair);
      const Pair<int64_t> to = channels_of(p, p.out_pairing, pair);
      write(to.first, narrowed<T>(y.first));
      write(to.second, narrowed<T>(y.second));
    }
    if (x.in == x.out && !normalises) return;
    for (int64_t i = lane; i < x.head_dim - 2 * p.pairs; i += kSumLanes) {
      const int64_t channel = channel_outside(p, i);
      write(channel, normalises ? narrowed<T>(prepared(channel)) : read(channel));
    }
  }
};

}  // namespace rope::cuda
