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

// Heads whose loads a thread issues before it rotates the first of them.
constexpr int kHeadsInFlight = 2;

// ---- the unit of a thread ----

// The channels at which the two vectors of a unit begin.
struct Channels {
  int first, second;
};

ROPE_INLINE Channels rotated_channels(const Plan& plan, const Units& units, int unit) {
  const int first = plan.rotary_offset + unit * units.step;
  return {first, first + units.partner};
}

// A head has `vectors` vectors that are only copied, two to a unit. A leftover vector forms a unit with itself.
ROPE_INLINE Channels copied_channels(const Plan& plan, int vectors, int unit) {
  const auto channel = [&](int vector) {
    const int outside = vector * plan.vector;
    return outside < plan.rotary_offset ? outside : outside + plan.rotary_dim;
  };
  return {channel(2 * unit), channel(2 * unit + 1 < vectors ? 2 * unit + 1 : 2 * unit)};
}

// A unit of one head in memory. Null pointers: there is nothing to do.
template <class T>
struct Unit {
  const T* in[2];
  T* out[2];
  int head;  // within its tensor
};

// head: counted through all tensors. out_units: where rotated units are written.
template <class T>
ROPE_INLINE Unit<T> locate(const RotateParams& p, const Plan& plan, const Units& out_units, int batch, int token,
                           int head, int unit) {
  if (head >= plan.heads) return {};
  int t = 0;
  for (; head >= p.x[t].heads; ++t) head -= static_cast<int>(p.x[t].heads);
  const RotatedTensor& x = p.x[t];
  Channels read, written;
  if (unit < plan.rotated_units) {
    read = rotated_channels(plan, plan.in, unit);
    written = rotated_channels(plan, out_units, unit);
  } else {
    const int vectors = x.in == x.out ? 0 : (static_cast<int>(x.head_dim) - plan.rotary_dim) / plan.vector;
    unit -= plan.rotated_units;
    if (2 * unit >= vectors) return {};
    read = written = copied_channels(plan, vectors, unit);
  }
  const Strides &from = x.in_stride, &to = x.out_stride;
  const T* in = at<T>(x.in, batch * from.batch + token * from.token + head * from.head);
  T* out = at<T>(x.out, batch * to.batch + token * to.token + head * to.head);
  return {{in + read.first * from.channel, in + read.second * from.channel},
          {out + written.first * to.channel, out + written.second * to.channel},
          head};
}

// (a0 b0 a1 b1 ..) <-> (a0 a1 .. b0 b1 ..)
template <class T, int kWidth>
ROPE_INLINE void exchange_pairing(bool from_interleaved, T (&channels)[2 * kWidth]) {
  T moved[2 * kWidth];
  ROPE_UNROLL
  for (int i = 0; i < kWidth; ++i) {
    for (int j = 0; j < 2; ++j) {
      const int interleaved = 2 * i + j, half = i + j * kWidth;
      if (from_interleaved) {
        moved[half] = channels[interleaved];
      } else {
        moved[interleaved] = channels[half];
      }
    }
  }
  ROPE_UNROLL
  for (int i = 0; i < 2 * kWidth; ++i) channels[i] = moved[i];
}

// Rotates the two vectors x of a unit.
template <class T, int kWidth, Source kSource>
ROPE_INLINE void rotate_unit(const Angles<Arithmetic<T>, kWidth, kSource>& angles, const Plan& plan,
                             bool round_products, Vector<T, kWidth> (&x)[2]) {
  using A = Arithmetic<T>;
  T channels[2 * kWidth];
  unpack(x[0], channels);
  unpack(x[1], channels + kWidth);
  const auto rotate_channels = [&](int pair, T& first, T& second) {
    const auto y = rotate_pair(
        Pair<A>{widened(first), widened(second)}, entries_of(angles.cos, pair), entries_of(angles.sin, pair),
        [&](A product) { return sizeof(T) < sizeof(A) && round_products ? widened(narrowed<T>(product)) : product; });
    first = narrowed<T>(y.first);
    second = narrowed<T>(y.second);
  };
  if (plan.in.interleaved) {
    ROPE_UNROLL
    for (int i = 0; i < kWidth; ++i) rotate_channels(i, channels[2 * i], channels[2 * i + 1]);
  } else {
    ROPE_UNROLL
    for (int i = 0; i < kWidth; ++i) rotate_channels(i, channels[i], channels[kWidth + i]);
  }
  if (plan.in.interleaved != plan.out.interleaved) exchange_pairing<T, kWidth>(plan.in.interleaved, channels);
  pack(channels, &x[0]);
  pack(channels + kWidth, &x[1]);
}

// ---- rotate ----

// kWidth is plan.vector, kSource p.source.
template <class T, int kWidth, Source kSource>
ROPE_INLINE void rotate_thread(const RotateParams& p, const Plan& plan, const Thread& thread) {
  const int64_t token_of_all = int64_t{thread.block / plan.splits} * plan.tokens + thread.token;
  if (token_of_all >= p.batch * p.seqlen) return;
  const int batch = static_cast<int>(token_of_all / p.seqlen), token = static_cast<int>(token_of_all % p.seqlen);
  const int first_head = thread.block % plan.splits * plan.head_threads + thread.head;
  const int head_step = plan.splits * plan.head_threads;

  const int in_flight = plan.row_per_head ? 1 : kHeadsInFlight;
  const auto row_of_token = [&] {
    return kSource == Source::kFrequencies ? sequence_start(p.positions, token) : table_row(p.positions, batch, token);
  };
  // A token that is not rotated keeps its pairing too.
  const bool keeps_pairing = plan.in.step != plan.out.step && row_of_token() == kNotRotated;
  const Units& out_units = keeps_pairing ? plan.in : plan.out;

  for (int unit = thread.unit; unit < plan.units; unit += plan.unit_threads) {
    Angles<Arithmetic<T>, kWidth, kSource> angles;
    bool rotated = false;
    for (int head = first_head; head < plan.heads; head += in_flight * head_step) {
      Unit<T> units[kHeadsInFlight];
      Vector<T, kWidth> x[kHeadsInFlight][2];
      ROPE_UNROLL
      for (int i = 0; i < kHeadsInFlight; ++i) {
        units[i] = locate<T>(p, plan, out_units, batch, token, i < in_flight ? head + i * head_step : plan.heads, unit);
        if (!units[i].out[0]) continue;
        x[i][0] = read<kWidth>(units[i].in[0]);
        x[i][1] = read<kWidth>(units[i].in[1]);
      }
      // cos and sin are loaded after the loads of x are issued, because they take two trips to memory: the position,
      // then the row.
      if (unit < plan.rotated_units && (head == first_head || plan.row_per_head)) {
        const int64_t row = row_of_token();
        rotated = row != kNotRotated;
        load_angles<T>(p, plan, batch, token, row, units[0].head, unit * kWidth, &angles);
      }
      ROPE_UNROLL
      for (int i = 0; i < kHeadsInFlight; ++i) {
        if (!units[i].out[0]) continue;
        if (rotated) rotate_unit(angles, plan, p.round_products, x[i]);
        write(x[i][0], units[i].out[0]);
        write(x[i][1], units[i].out[1]);
      }
    }
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
