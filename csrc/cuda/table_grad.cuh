// The work of one thread of the table_grad kernel (see rotate.cuh).
#pragma once

#include "core/math.h"
#include "core/params.h"
#include "cuda/angles.cuh"

namespace rope::cuda {

// Whether cos and sin have the type T of x; otherwise they have the arithmetic type of T.
template <class T>
ROPE_INLINE bool table_like_x(const Rotation& p) {
  return sizeof(T) == sizeof(Arithmetic<T>) || p.table_dtype == p.dtype;
}

template <class T>
ROPE_INLINE void write_entry(const TableGradParams& p, void* data, int64_t offset, Arithmetic<T> value) {
  if (table_like_x<T>(p)) {
    *at<T>(data, offset) = narrowed<T>(value);
  } else {
    *at<Arithmetic<T>>(data, offset) = value;
  }
}

ROPE_INLINE int64_t table_grad_threads(const TableGradParams& p) {
  return p.pairs * p.seqlen * p.table_heads * p.table_batches;
}

// A thread writes the entries of one pair: one each of cos and sin, or two each if the tables have one per channel. It
// adds in a fixed order, so that the sums are bit-identical to those of the CPU.
template <class T>
ROPE_INLINE void table_grad_thread(const TableGradParams& p, int64_t index) {
  using A = Arithmetic<T>;
  if (index >= table_grad_threads(p)) return;
  const int64_t pair = index % p.pairs, token = index / p.pairs % p.seqlen;
  const int64_t share = index / p.pairs / p.seqlen;  // index over the heads and batch entries of the tables
  const int64_t table_head = share % p.table_heads, table_batch = share / p.table_heads;
  const bool row_per_head = p.table_heads != 1;
  const int64_t batch_end = p.table_batches == 1 ? p.batch : table_batch + 1;
  A cos_first = 0, cos_second = 0, sin_first = 0, sin_second = 0;
  for (int64_t batch = table_batch; batch < batch_end; ++batch) {
    for (int t = 0; t < p.num_tensors; ++t) {
      const GradTensor& x = p.x[t];
      const int64_t begin = row_per_head ? table_head : 0, end = row_per_head ? table_head + 1 : x.heads;
      for (int64_t head = begin; head < end; ++head) {
        const auto read_pair = [&](const void* data, const Strides& s, Pairing pairing) {
          const int64_t first = p.rotary_offset + pair * pairing.step, second = first + pairing.partner;
          const T* row = at<T>(data, batch * s.batch + token * s.token + head * s.head);
          return Pair<A>{widened(row[first * s.channel]), widened(row[second * s.channel])};
        };
        const Pair<A> channels = read_pair(x.x, x.x_stride, p.pairing);
        const Pair<A> g = read_pair(x.grad, x.grad_stride, p.out_pairing);
        const Pair<A> cos = cos_gradient(g, channels), sin = sin_gradient(g, channels);
        cos_first += cos.first;
        cos_second += cos.second;
        sin_first += sin.first;
        sin_second += sin.second;
      }
    }
  }
  const bool per_channel = p.source == Source::kPerChannel;
  const auto store = [&](const WrittenTable& table, A first, A second, bool negate) {
    const A sign = negate ? A(-1) : A(1);
    const int64_t to = entry(table, table_batch, token, table_head, pair);
    // An entry that both channels share receives the sum of their gradients.
    write_entry<T>(p, table.first, to, sign * (per_channel ? first : first + second));
    if (per_channel) write_entry<T>(p, table.second, to, sign * second);
  };
  store(p.cos, cos_first, cos_second, false);
  store(p.sin, sin_first, sin_second, p.negate_sin);
}

}  // namespace rope::cuda
