// The gradients of the tables at one token.
#pragma once

#include <initializer_list>

#include "core/dispatch.h"
#include "core/math.h"
#include "core/params.h"
#include "cpu/angles.h"
#include "cpu/rows.h"

namespace rope::cpu {
namespace {

// Gradients of a block of pairs of one token, summed over the axes along which the table broadcasts. Until all summands
// are added, entries are in the lane order of load_pairs.
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
void store_sums(DType dtype, bool per_channel, const WrittenTable& table, int64_t offset, const A* first,
                const A* second, bool negate, int64_t n) {
  const A sign = negate ? A(-1) : A(1);
  dispatch_dtype(dtype, [&](auto tag) {
    using E = typename decltype(tag)::type;
    E* to_first = at<E>(table.first, offset);
    E* to_second = at<E>(table.second, offset);
    for (int64_t i = 0; i < n; ++i) {
      // An entry that both channels share receives the sum of their gradients.
      narrow(static_cast<Arithmetic<E>>(sign * (per_channel ? first[i] : first[i] + second[i])),
             &to_first[i * table.pair_stride]);
      if (per_channel) narrow(static_cast<Arithmetic<E>>(sign * second[i]), &to_second[i * table.pair_stride]);
    }
  });
}

// Each table entry has one writer and a fixed order of additions, so the result does not depend on the thread count.
template <Access kAccess, class T>
void table_grad_token(const TableGradParams& p, int64_t table_batch, int64_t token) {
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
          const GradTensor& x = p.x[t];
          const auto in = token_row<const T>(p.rotary_offset, x.x, x.x_stride, p.pairing, b, token, begin);
          const auto grad = token_row<const T>(p.rotary_offset, x.grad, x.grad_stride, p.out_pairing, b, token, begin);
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
          write_lanes(sum + i,
                      kAccess == Access::kInterleaved ? pair_from_interleaved_order(v) : pair_from_run_order(v));
        }
      }
      const int64_t to = entry(p.cos, table_batch, token, table_head, begin);
      const bool per_channel = p.source == Source::kPerChannel;
      store_sums(p.table_dtype, per_channel, p.cos, to, sums.cos_first, sums.cos_second, false, n);
      store_sums(p.table_dtype, per_channel, p.sin, to, sums.sin_first, sums.sin_second, p.negate_sin, n);
    }
  }
}

}  // namespace
}  // namespace rope::cpu
