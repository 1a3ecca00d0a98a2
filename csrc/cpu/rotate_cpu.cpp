// The CPU kernels: OpenMP over tokens. Compiled once per instruction set (ROPE_ISA names it); everything but
// the table at the end has internal linkage, so that no other instruction set can be linked to these copies.
#include <omp.h>

#include <cmath>
#include <initializer_list>

#include "core/angles.h"
#include "core/dispatch.h"
#include "core/math.h"
#include "cpu/isa.h"
#include "cpu/rows.h"

namespace rope::cpu {
namespace {

// Pairs of a token whose cos/sin are held converted in L1.
constexpr int64_t kPairBlock = 128;

// Entries of cos and sin that a thread makes at least.
constexpr int64_t kGrainEntries = 16384;

// ---- rotate ----

// cos and sin of the pairs of a token, in arithmetic type, with zeros up to whole vectors. Of a pair's two channels;
// those of the second are only filled in tables with one entry per channel.
template <class A>
struct Angles {
  alignas(64) A entries[4][kPairBlock];  // cos and sin of the first channel, cos and sin of the second
  bool per_channel;

  const A* cos_first() const { return entries[0]; }
  const A* sin_first() const { return entries[1]; }
  const A* cos_second() const { return entries[per_channel ? 2 : 0]; }
  const A* sin_second() const { return entries[per_channel ? 3 : 1]; }
};

// kMultiple: zeros follow up to a multiple of it. A NaN becomes one with zeros in its low half (bfloat16_rounded).
template <int64_t kMultiple, class A>
void load_entries(DType dtype, const void* data, int64_t offset, int64_t stride, int64_t n, bool negate, A* to) {
  dispatch_dtype(dtype, [&](auto tag) {
    const auto* from = at<typename decltype(tag)::type>(data, offset);
    for (int64_t i = 0; i < n; ++i) {
      const A value = static_cast<A>(widen(from[i * stride]));
      const A number = value == value ? value : static_cast<A>(NAN);
      to[i] = negate ? -number : number;
    }
  });
  for (int64_t i = n; i % kMultiple; ++i) to[i] = 0;
}

int64_t entry(const Table& t, int64_t batch, int64_t row, int64_t head, int64_t pair) {
  return batch * t.batch_stride + row * t.row_stride + head * t.head_stride + pair * t.pair_stride;
}

// cos and sin of n pairs at a token, from its positions.
template <class A>
void make_entries(const Params& p, int64_t batch, int64_t token, int64_t sequence_start, int64_t head, int64_t begin,
                  int64_t n, A* cos, A* sin) {
  // Of positions in one number on one axis, the most frequent ones, nothing is added up.
  A high[kPairBlock], low[kPairBlock];
  for (int64_t axis = 0; axis < p.axes; ++axis) {
    const A* frequency_high = at<A>(p.cos.first, entry(p.cos, 0, axis, head, begin));
    const A* frequency_low = at<A>(p.sin.first, entry(p.sin, 0, axis, head, begin));
    const Two<A> position = position_of<A>(p.positions, batch, token, sequence_start, axis);
    const auto finish = [&](Two<A> revolutions, int64_t i) {
      const CosSin<A> made = cos_sin(revolutions);
      cos[i] = made.cos;
      sin[i] = made.sin;
    };
    if (p.axes == 1 && position.high == 0) {
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
    if (axis + 1 < p.axes) continue;
    for (int64_t i = 0; i < n; ++i) finish(Two<A>{high[i], low[i]}, i);
  }
  const A scale = static_cast<A>(p.attention_scaling);
  if (scale == 1 && !p.negate_sin) return;  // two of forty operations
  for (int64_t i = 0; i < n; ++i) {
    cos[i] *= scale;
    sin[i] *= p.negate_sin ? -scale : scale;
  }
}

// From tables or positions. row: as of table_row, but not kNotRotated; with positions, the start of the sequence. A row
// outside the table is not read: NaN.
template <class T, Access kAccess, class A>
void load_angles(const Params& p, int64_t batch, int64_t token, int64_t row, int64_t head, int64_t begin, int64_t n,
                 A (&to)[4][kPairBlock]) {
  const auto order = [&](A* entries) {
    for (int64_t i = 0; i < n; i += kStep<T>) {
      const auto in_order = read_lanes<Lanes<T>>(entries + i);
      write_lanes(entries + i, kAccess == Access::kInterleaved ? interleaved_order(in_order) : run_order(in_order));
    }
  };
  const auto load = [&](const Table& table, const void* data, bool negate, A* entries) {
    if (row == kOutside) {
      for (int64_t i = 0; i < kPairBlock; ++i) entries[i] = static_cast<A>(NAN);
      return;
    }
    const int64_t from = entry(table, batch, row, head, begin);
    load_entries<kStep<T>>(p.table_dtype, data, from, table.pair_stride, n, negate, entries);
    order(entries);
  };
  if (p.axes) {
    make_entries(p, batch, token, row, head, begin, n, to[0], to[1]);
    for (A* entries : {to[0], to[1]}) {
      for (int64_t i = n; i % kStep<T>; ++i) entries[i] = 0;
      order(entries);
    }
    return;
  }
  load(p.cos, p.cos.first, false, to[0]);
  load(p.sin, p.sin.first, p.negate_sin, to[1]);
  if (!p.per_channel) return;
  load(p.cos, p.cos.second, false, to[2]);
  load(p.sin, p.sin.second, p.negate_sin, to[3]);
}

// Rows that share angles: `count` of them, `stride` apart; and what else is the same for all rows of a tensor.
template <class T>
struct Rows {
  const T* in;
  T* out;
  int64_t in_stride, out_stride, count;
  Pairing from, to;
  int64_t prefetch;  // bytes from a row to the one asked for meanwhile; 0: none
  int64_t row_bytes;
};

// Pairs i .. i + kSteps * kStep of each row (kSteps 0: i .. i + m, less than a step). cos and sin stay in registers, as
// many as there are: from L1 at each row 15 to 40 % more time (AVX-512, 0.3 MiB in bfloat16 and float16).
template <Access kAccess, bool kStream, bool kRoundProducts, int kSteps, class T>
ROPE_INLINE void rotate_rows(const Rows<T>& rows, const Angles<Arithmetic<T>>& angles, int64_t i, int64_t m) {
  constexpr bool kFull = kSteps > 0;
  constexpr int kCount = kFull ? kSteps : 1;
  using L = Lanes<T>;
  Pair<L> cos[kCount], sin[kCount];
  for (int s = 0; s < kCount; ++s) {
    const int64_t at = i + s * kStep<T>;
    cos[s] = {read_lanes<L>(angles.cos_first() + at), read_lanes<L>(angles.cos_second() + at)};
    sin[s] = {read_lanes<L>(angles.sin_first() + at), read_lanes<L>(angles.sin_second() + at)};
  }
  const T* in = rows.in + i * rows.from.step;
  T* out = rows.out + i * rows.to.step;
  const Pairing from = rows.from, to = rows.to;
  for (int64_t r = 0; r < rows.count; ++r, in += rows.in_stride, out += rows.out_stride) {
    if (rows.prefetch && i == 0) {
      const char* next = reinterpret_cast<const char*>(in) + rows.prefetch;
      for (int64_t at = 0; at < rows.row_bytes; at += 64) __builtin_prefetch(next + at);
    }
    for (int s = 0; s < kCount; ++s) {
      const int64_t at = s * kStep<T>;
      const auto x = load_pairs<kAccess, kFull>(in + at * from.step, from, m);
      const auto y = rotate_pair(x, cos[s], sin[s], [](L product) {
        using E = Elements<T>;
        return kRoundProducts ? E::unpack(E::pack(product)) : product;
      });
      store_pairs<kAccess, kFull, kStream>(y, out + at * to.step, to, m);
    }
  }
}

template <Access kAccess, bool kStream, bool kRoundProducts, class T>
void rotate_rows(const Rows<T>& rows, const Angles<Arithmetic<T>>& angles, int64_t n) {
  constexpr int64_t k = kStep<T>;
  int64_t i = 0;
  if constexpr (kAccess != Access::kAny) {
    for (; i + 4 * k <= n; i += 4 * k) rotate_rows<kAccess, kStream, kRoundProducts, 4>(rows, angles, i, k);
    for (; i + 2 * k <= n; i += 2 * k) rotate_rows<kAccess, kStream, kRoundProducts, 2>(rows, angles, i, k);
  }
  for (; i + k <= n; i += k) rotate_rows<kAccess, kStream, kRoundProducts, 1>(rows, angles, i, k);
  if (i < n) rotate_rows<kAccess, kStream, kRoundProducts, 0>(rows, angles, i, n - i);
}

// Copies channels [begin, end) of every head of a token, bit for bit.
template <class T>
void copy_channels(const RotatedTensor& x, int64_t batch, int64_t token, int64_t begin, int64_t end) {
  if (x.in == x.out || begin >= end) return;
  const Strides &from = x.in_stride, &to = x.out_stride;
  for (int64_t h = 0; h < x.heads; ++h) {
    const T* in = at<T>(x.in, batch * from.batch + token * from.token + h * from.head + begin * from.channel);
    T* out = at<T>(x.out, batch * to.batch + token * to.token + h * to.head + begin * to.channel);
    if (from.channel == 1 && to.channel == 1) {
      memcpy(out, in, (end - begin) * sizeof(T));
    } else {
      for (int64_t c = 0; c < end - begin; ++c) out[c * to.channel] = in[c * from.channel];
    }
  }
}

template <Access kAccess, bool kStream, class T>
void rotate_token(const Params& p, const Plan& plan, int64_t batch, int64_t token) {
  const int64_t row = p.axes ? sequence_of(p.positions, token) : table_row(p.positions, batch, token);
  const int64_t pairs = row == kNotRotated ? 0 : p.pairs;
  for (int t = 0; t < p.num_tensors; ++t) {
    copy_channels<T>(p.x[t], batch, token, 0, pairs ? p.rotary_offset : p.x[t].head_dim);
    if (pairs) copy_channels<T>(p.x[t], batch, token, p.rotary_offset + 2 * pairs, p.x[t].head_dim);
  }
  const bool row_per_head = p.table_heads != 1;
  Angles<Arithmetic<T>> angles;
  angles.per_channel = p.per_channel;
  for (int64_t head = 0; head < p.table_heads; ++head) {
    for (int64_t begin = 0; begin < pairs; begin += kPairBlock) {
      const int64_t n = pairs - begin < kPairBlock ? pairs - begin : kPairBlock;
      load_angles<T, kAccess>(p, batch, token, row, head, begin, n, angles.entries);
      for (int t = 0; t < p.num_tensors; ++t) {
        const RotatedTensor& x = p.x[t];
        const auto in = token_row<const T>(p, x.in, x.in_stride, p.pairing, batch, token, begin);
        const auto out = token_row<T>(p, x.out, x.out_stride, p.out_pairing, batch, token, begin);
        const Rows<T> rows = {in.data + head * in.head_stride,
                              out.data + head * out.head_stride,
                              in.head_stride,
                              out.head_stride,
                              row_per_head ? 1 : x.heads,
                              in.pairing,
                              out.pairing,
                              plan.prefetch[t],
                              static_cast<int64_t>(2 * n * sizeof(T))};
        if constexpr (sizeof(T) == 2) {  // asked for each vector, bfloat16 from the caches takes 5 to 12 % longer
          if (p.round_products) {
            rotate_rows<kAccess, kStream, true>(rows, angles, n);
            continue;
          }
        }
        rotate_rows<kAccess, kStream, false>(rows, angles, n);
      }
    }
  }
}

// ---- gradient of the tables ----

// Sums over whatever the table broadcasts over, for a block of pairs of one token.
template <class A>
struct Sums {
  A cos_first[kPairBlock], cos_second[kPairBlock], sin_first[kPairBlock], sin_second[kPairBlock];
};

template <Access kAccess, class A, class T>
void accumulate_row(const T* x, Pairing x_at, const T* grad, Pairing grad_at, Sums<A>* sums, int64_t n) {
  for_each_step<T>(n, [&](auto full, int64_t i, int64_t m) {
    const auto channels = load_pairs<kAccess, full>(x + i * x_at.step, x_at, m);
    const auto g = load_pairs<kAccess, full>(grad + i * grad_at.step, grad_at, m);
    const auto add = [&](A* to, Lanes<T> v) { write_lanes(to + i, read_lanes<Lanes<T>>(to + i) + v); };
    const auto cos = cos_gradient(g, channels), sin = sin_gradient(g, channels);
    add(sums->cos_first, cos.first);
    add(sums->cos_second, cos.second);
    add(sums->sin_first, sin.first);
    add(sums->sin_second, sin.second);
  });
}

template <class A>
void store_sums(DType dtype, bool per_channel, const Table& table, int64_t offset, const A* first, const A* second,
                bool negate, int64_t n) {
  const A sign = negate ? A(-1) : A(1);
  dispatch_dtype(dtype, [&](auto tag) {
    using E = typename decltype(tag)::type;
    E* to_first = at<E>(table.first, offset);
    E* to_second = at<E>(table.second, offset);
    for (int64_t i = 0; i < n; ++i) {
      // One entry per pair: the gradients of both channels belong to it.
      narrow(static_cast<Arithmetic<E>>(sign * (per_channel ? first[i] : first[i] + second[i])),
             &to_first[i * table.pair_stride]);
      if (per_channel) narrow(static_cast<Arithmetic<E>>(sign * second[i]), &to_second[i * table.pair_stride]);
    }
  });
}

// Every table entry has one writer and a fixed order of additions: the result does not depend on the thread count.
template <Access kAccess, class T>
void table_grad_token(const Params& p, int64_t table_batch, int64_t token) {
  using A = Arithmetic<T>;
  const bool row_per_head = p.table_heads != 1;
  const int64_t batch_end = p.table_batches == 1 ? p.batch : table_batch + 1;
  Sums<A> sums;
  for (int64_t table_head = 0; table_head < p.table_heads; ++table_head) {
    for (int64_t begin = 0; begin < p.pairs; begin += kPairBlock) {
      const int64_t n = p.pairs - begin < kPairBlock ? p.pairs - begin : kPairBlock;
      memset(&sums, 0, sizeof(sums));
      for (int64_t b = table_batch; b < batch_end; ++b) {
        for (int t = 0; t < p.num_tensors; ++t) {
          const RotatedTensor& x = p.x[t];
          const auto in = token_row<const T>(p, x.in, x.in_stride, p.pairing, b, token, begin);
          const auto grad = token_row<const T>(p, x.out, x.out_stride, p.out_pairing, b, token, begin);
          const int64_t first_head = row_per_head ? table_head : 0;
          const int64_t last_head = row_per_head ? table_head + 1 : x.heads;
          for (int64_t h = first_head; h < last_head; ++h) {
            accumulate_row<kAccess>(in.data + h * in.head_stride, in.pairing, grad.data + h * grad.head_stride,
                                    grad.pairing, &sums, n);
          }
        }
      }
      for (A* sum : {sums.cos_first, sums.cos_second, sums.sin_first, sums.sin_second}) {
        for (int64_t i = 0; i < n; i += kStep<T>) {
          const auto v = read_lanes<Lanes<T>>(sum + i);
          write_lanes(sum + i, kAccess == Access::kInterleaved ? interleaved_order(v) : order_of_run(v));
        }
      }
      const int64_t to = entry(p.cos, table_batch, token, table_head, begin);
      store_sums(p.table_dtype, p.per_channel, p.cos, to, sums.cos_first, sums.cos_second, false, n);
      store_sums(p.table_dtype, p.per_channel, p.sin, to, sums.sin_first, sums.sin_second, p.negate_sin, n);
    }
  }
}

// ---- threads ----

// Calls function(batch, token) for all tokens of `batch` sequences.
// num_threads(): a bare `omp parallel` ignores torch.set_num_threads() in threads that torch did not start.
template <class Function>
void for_each_token(const Params& p, const Plan& plan, int64_t batch, int num_threads, const Function& function) {
  const int64_t tokens = batch * p.seqlen;
  if (num_threads > plan.threads) num_threads = static_cast<int>(plan.threads);
  if (num_threads > tokens) num_threads = static_cast<int>(tokens);
  const auto share = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) function(i / p.seqlen, i % p.seqlen);
    fence_streams();
  };
  if (num_threads <= 1 || omp_in_parallel()) return share(0, tokens);
#pragma omp parallel num_threads(num_threads)
  {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    share(tokens * thread / threads, tokens * (thread + 1) / threads);
  }
}

void rotate(const Params& p, int num_threads) {
  const Plan plan = plan_of(p);
  dispatch_dtype(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_access(plan.access, [&](auto access) {
      constexpr bool kStreams = access != Access::kAny;
      const auto rotate = plan.stream ? rotate_token<access, kStreams, T> : rotate_token<access, false, T>;
      for_each_token(p, plan, p.batch, num_threads,
                     [&](int64_t batch, int64_t token) { rotate(p, plan, batch, token); });
    });
  });
}

void table_grad(const Params& p, int num_threads) {
  const Plan plan = plan_of(p);
  dispatch_dtype(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_access(plan.access, [&](auto access) {
      for_each_token(p, plan, p.table_batches, num_threads,
                     [&](int64_t batch, int64_t token) { table_grad_token<access, T>(p, batch, token); });
    });
  });
}

void cos_sin_of_tokens(const Params& p, int num_threads) {
  Plan plan{};
  plan.threads = p.batch * p.seqlen * p.x[0].heads * p.pairs / kGrainEntries;
  dispatch_arithmetic(p.dtype, [&](auto tag) {
    using A = typename decltype(tag)::type;
    for_each_token(p, plan, p.batch, num_threads, [&](int64_t batch, int64_t token) {
      const int64_t start = sequence_of(p.positions, token), at_token = batch * p.seqlen + token;
      for (int64_t head = 0; head < p.x[0].heads; ++head) {
        const int64_t to = (at_token * p.x[0].heads + head) * p.pairs;
        A *cos = at<A>(p.x[0].out, to), *sin = at<A>(p.x[1].out, to);
        for (int64_t begin = 0; begin < p.pairs; begin += kPairBlock) {
          const int64_t n = p.pairs - begin < kPairBlock ? p.pairs - begin : kPairBlock;
          if (start == kNotRotated) {
            for (int64_t i = begin; i < begin + n; ++i) cos[i] = 1, sin[i] = 0;
          } else {
            make_entries(p, batch, token, start, head, begin, n, cos + begin, sin + begin);
          }
        }
      }
      for (int64_t axis = 0; axis < p.axes; ++axis) {
        const Two<A> position =
            start == kNotRotated ? Two<A>{} : position_of<A>(p.positions, batch, token, start, axis);
        *at<A>(p.x[2].out, axis * p.batch * p.seqlen + at_token) = position.high + position.low;
      }
    });
  });
}

}  // namespace

#define ROPE_CONCAT_(a, b) a##b
#define ROPE_CONCAT(a, b) ROPE_CONCAT_(a, b)
#define ROPE_STRING_(a) #a
#define ROPE_STRING(a) ROPE_STRING_(a)
extern const Kernels ROPE_CONCAT(kernels_, ROPE_ISA);
const Kernels ROPE_CONCAT(kernels_, ROPE_ISA) = {ROPE_STRING(ROPE_ISA), rotate, table_grad, cos_sin_of_tokens};

}  // namespace rope::cpu
