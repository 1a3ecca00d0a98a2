// The CUDA kernels, as what one thread does: nothing is shared between threads, so tests run the same text on a CPU,
// thread after thread (csrc/introspect/emulate_cuda.cpp).
#pragma once

#include <cmath>

#include "core/dispatch.h"
#include "core/math.h"
#include "core/params.h"
#include "cuda/plan.h"
#include "cuda/vector.cuh"

namespace rope::cuda {

// Heads whose elements a thread asks for before it turns the first of them.
constexpr int kHeadsInFlight = 2;

template <class T>
ROPE_INLINE T* at(void* data, int64_t offset) {
  return static_cast<T*>(data) + offset;
}
template <class T>
ROPE_INLINE const T* at(const void* data, int64_t offset) {
  return static_cast<const T*>(data) + offset;
}

// ---- cos and sin of the pairs of a unit ----

template <class A, int kPairs, bool kPerChannel>
struct Angles {
  static constexpr int kEntries = kPerChannel ? 2 : 1;  // of a pair
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

// All of cos and sin is asked for before any of it is worked with.
template <class E, int kPairs, class A>
ROPE_INLINE void load_entries(const Params& p, bool vectors, const E* cos, const E* sin, A* to_cos, A* to_sin) {
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

// Else cos and sin have the arithmetic type.
template <class T>
ROPE_INLINE bool table_like_x(const Params& p) {
  return sizeof(T) == sizeof(Arithmetic<T>) || p.table_dtype == p.dtype;
}

// The entries of one channel of each pair. cos, sin: offsets.
template <class T, int kPairs, class A>
ROPE_INLINE void load_entries(const Params& p, const Plan& plan, const void* cos_data, int64_t cos,
                              const void* sin_data, int64_t sin, A (&to_cos)[kPairs], A (&to_sin)[kPairs]) {
  if (table_like_x<T>(p)) {
    load_entries<T, kPairs>(p, plan.table_vectors, at<T>(cos_data, cos), at<T>(sin_data, sin), to_cos, to_sin);
  } else {
    load_entries<A, kPairs>(p, plan.table_vectors, at<A>(cos_data, cos), at<A>(sin_data, sin), to_cos, to_sin);
  }
}

template <class T>
ROPE_INLINE void write_entry(const Params& p, void* data, int64_t offset, Arithmetic<T> value) {
  if (table_like_x<T>(p)) {
    *at<T>(data, offset) = narrowed<T>(value);
  } else {
    *at<Arithmetic<T>>(data, offset) = value;
  }
}

ROPE_INLINE int64_t entry(const Table& t, int64_t batch, int64_t row, int64_t head, int64_t pair) {
  return batch * t.batch_stride + row * t.row_stride + head * t.head_stride + pair * t.pair_stride;
}

template <class A, int kPairs, bool kPerChannel>
ROPE_INLINE void fill(A value, Angles<A, kPairs, kPerChannel>* to) {
  ROPE_UNROLL
  for (int i = 0; i < kPairs; ++i) {
    for (int j = 0; j < (kPerChannel ? 2 : 1); ++j) to->cos[j][i] = to->sin[j][i] = value;
  }
}

// A row outside the table is not read: NaN.
template <class T, int kPairs, bool kPerChannel>
ROPE_INLINE void load_angles(const Params& p, const Plan& plan, int64_t batch, int64_t row, int64_t head, int64_t pair,
                             Angles<Arithmetic<T>, kPairs, kPerChannel>* to) {
  if (row == kNotRotated) return;
  if (row == kOutside) return fill(static_cast<Arithmetic<T>>(NAN), to);
  const int64_t cos = entry(p.cos, batch, row, head, pair), sin = entry(p.sin, batch, row, head, pair);
  load_entries<T>(p, plan, p.cos.first, cos, p.sin.first, sin, to->cos[0], to->sin[0]);
  if constexpr (kPerChannel) load_entries<T>(p, plan, p.cos.second, cos, p.sin.second, sin, to->cos[1], to->sin[1]);
}

// ---- the unit of a thread ----

// Channels at which the two vectors of a unit begin.
struct Channels {
  int first, second;
};

ROPE_INLINE Channels rotated_channels(const Plan& plan, int unit) {
  const int first = plan.rotary_offset + unit * plan.unit_step;
  return {first, first + plan.second};
}

// Of the channels outside the rotated ones; `vectors` of them. An odd one at the end makes a unit by itself, twice.
ROPE_INLINE Channels copied_channels(const Plan& plan, int vectors, int unit) {
  const auto channel = [&](int vector) {
    const int outside = vector * plan.vector;
    return outside < plan.rotary_offset ? outside : outside + plan.rotary_dim;
  };
  return {channel(2 * unit), channel(2 * unit + 1 < vectors ? 2 * unit + 1 : 2 * unit)};
}

// A unit of one head in memory; null: there is nothing to do.
template <class T>
struct Unit {
  const T* in[2];
  T* out[2];
  int head;  // of its tensor
};

// head: among those of all tensors.
template <class T>
ROPE_INLINE Unit<T> locate(const Params& p, const Plan& plan, int batch, int token, int head, int unit) {
  if (head >= plan.heads) return {};
  int t = 0;
  for (; head >= p.x[t].heads; ++t) head -= static_cast<int>(p.x[t].heads);
  const RotatedTensor& x = p.x[t];
  Channels channels;
  if (unit < plan.rotated_units) {
    channels = rotated_channels(plan, unit);
  } else {
    const int vectors = x.in == x.out ? 0 : (static_cast<int>(x.head_dim) - plan.rotary_dim) / plan.vector;
    unit -= plan.rotated_units;
    if (2 * unit >= vectors) return {};
    channels = copied_channels(plan, vectors, unit);
  }
  const Strides &from = x.in_stride, &to = x.out_stride;
  const T* in = at<T>(x.in, batch * from.batch + token * from.token + head * from.head);
  T* out = at<T>(x.out, batch * to.batch + token * to.token + head * to.head);
  return {{in + channels.first * from.channel, in + channels.second * from.channel},
          {out + channels.first * to.channel, out + channels.second * to.channel},
          head};
}

// x: the two vectors.
template <class T, int kWidth, bool kPerChannel>
ROPE_INLINE void turn(const Angles<Arithmetic<T>, kWidth, kPerChannel>& angles, bool interleaved,
                      Vector<T, kWidth> (&x)[2]) {
  T channels[2 * kWidth];
  unpack(x[0], channels);
  unpack(x[1], channels + kWidth);
  const auto turn_pair = [&](int pair, T& first, T& second) {
    const Pair<Arithmetic<T>> wide = {widened(first), widened(second)};
    const auto y = rotate_pair(wide, entries_of(angles.cos, pair), entries_of(angles.sin, pair));
    first = narrowed<T>(y.first);
    second = narrowed<T>(y.second);
  };
  if (interleaved) {
    ROPE_UNROLL
    for (int i = 0; i < kWidth; ++i) turn_pair(i, channels[2 * i], channels[2 * i + 1]);
  } else {
    ROPE_UNROLL
    for (int i = 0; i < kWidth; ++i) turn_pair(i, channels[i], channels[kWidth + i]);
  }
  pack(channels, &x[0]);
  pack(channels + kWidth, &x[1]);
}

// ---- rotate ----

// plan.vector is kWidth, p.per_channel is kPerChannel.
template <class T, int kWidth, bool kPerChannel>
ROPE_INLINE void rotate_thread(const Params& p, const Plan& plan, const Thread& thread) {
  const int64_t token_of_all = int64_t{thread.block / plan.splits} * plan.tokens + thread.token;
  if (token_of_all >= p.batch * p.seqlen) return;
  const int batch = static_cast<int>(token_of_all / p.seqlen), token = static_cast<int>(token_of_all % p.seqlen);
  const int first_head = thread.block % plan.splits * plan.slots + thread.slot;
  const int head_step = plan.splits * plan.slots;

  const int in_flight = plan.row_per_head ? 1 : kHeadsInFlight;

  for (int unit = thread.lane; unit < plan.units; unit += plan.lanes) {
    Angles<Arithmetic<T>, kWidth, kPerChannel> angles;
    bool turned = false;
    for (int head = first_head; head < plan.heads; head += in_flight * head_step) {
      Unit<T> units[kHeadsInFlight];
      Vector<T, kWidth> x[kHeadsInFlight][2];
      ROPE_UNROLL
      for (int i = 0; i < kHeadsInFlight; ++i) {
        units[i] = locate<T>(p, plan, batch, token, i < in_flight ? head + i * head_step : plan.heads, unit);
        if (!units[i].out[0]) continue;
        x[i][0] = read<kWidth>(units[i].in[0]);
        x[i][1] = read<kWidth>(units[i].in[1]);
      }
      // After the elements are asked for: the way to cos and sin leads over a position, so it takes two trips to
      // memory.
      if (unit < plan.rotated_units && (head == first_head || plan.row_per_head)) {
        const int64_t row = table_row(p.positions, batch, token);
        turned = row != kNotRotated;
        load_angles<T>(p, plan, batch, row, units[0].head, unit * kWidth, &angles);
      }
      ROPE_UNROLL
      for (int i = 0; i < kHeadsInFlight; ++i) {
        if (!units[i].out[0]) continue;
        if (turned) turn(angles, plan.interleaved, x[i]);
        write(x[i][0], units[i].out[0]);
        write(x[i][1], units[i].out[1]);
      }
    }
  }
}

// ---- gradient of the tables ----

ROPE_INLINE int64_t table_entries(const Params& p) {
  return p.pairs * p.seqlen * (p.cos.head_stride ? p.x[0].heads : 1) * (p.cos.batch_stride ? p.batch : 1);
}

// One entry of cos and of sin (two each with one per channel) has one thread, which adds in a fixed order: the sums are
// those of the CPU, bit for bit. x.in is x, x.out the gradient of the result, p.cos and p.sin what is written.
template <class T>
ROPE_INLINE void table_grad_thread(const Params& p, int64_t index) {
  using A = Arithmetic<T>;
  if (index >= table_entries(p)) return;
  const int64_t pair = index % p.pairs, token = index / p.pairs % p.seqlen;
  const int64_t share = index / p.pairs / p.seqlen;  // a head, a batch entry, or both
  const int64_t table_heads = p.cos.head_stride ? p.x[0].heads : 1;
  const int64_t table_head = share % table_heads, table_batch = share / table_heads;
  const int64_t batch_end = p.cos.batch_stride ? table_batch + 1 : p.batch;
  A cos_first = 0, cos_second = 0, sin_first = 0, sin_second = 0;
  for (int64_t batch = table_batch; batch < batch_end; ++batch) {
    for (int t = 0; t < p.num_tensors; ++t) {
      const RotatedTensor& x = p.x[t];
      const int64_t begin = p.cos.head_stride ? table_head : 0, end = p.cos.head_stride ? table_head + 1 : x.heads;
      for (int64_t head = begin; head < end; ++head) {
        const auto read_pair = [&](const void* data, const Strides& s) {
          const int64_t first = p.rotary_offset + pair * p.pairing.step, second = first + p.pairing.partner;
          const T* row = at<T>(data, batch * s.batch + token * s.token + head * s.head);
          return Pair<A>{widened(row[first * s.channel]), widened(row[second * s.channel])};
        };
        const Pair<A> channels = read_pair(x.in, x.in_stride), g = read_pair(x.out, x.out_stride);
        const Pair<A> cos = cos_gradient(g, channels), sin = sin_gradient(g, channels);
        cos_first += cos.first;
        cos_second += cos.second;
        sin_first += sin.first;
        sin_second += sin.second;
      }
    }
  }
  const auto store = [&](const Table& table, A first, A second, bool negate) {
    const A sign = negate ? A(-1) : A(1);
    const int64_t to = entry(table, table_batch, token, table_head, pair);
    // One entry per pair: the gradients of both channels belong to it.
    write_entry<T>(p, table.first, to, sign * (p.per_channel ? first : first + second));
    if (p.per_channel) write_entry<T>(p, table.second, to, sign * second);
  };
  store(p.cos, cos_first, cos_second, false);
  store(p.sin, sin_first, sin_second, p.negate_sin);
}

// ---- instances ----

template <class T, int kWidth_, bool kPerChannel_>
struct Instance {
  using Element = T;
  static constexpr int kWidth = kWidth_;
  static constexpr bool kPerChannel = kPerChannel_;
};

template <int kWidth, class T, class Run>
void run_width(const Params& p, const Run& run) {
  if (p.per_channel) {
    run(Instance<T, kWidth, true>{});
  } else {
    run(Instance<T, kWidth, false>{});
  }
}

// Calls run with the instance of rotate_thread for this call: accesses of 16 bytes, of 4, or of one element. Tables
// with an entry per channel have their own, for the registers: they hold twice as many of cos and sin.
template <class Run>
void run_instance(const Params& p, const Plan& plan, const Run& run) {
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
