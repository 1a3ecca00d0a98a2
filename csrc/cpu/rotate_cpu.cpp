// The CPU kernels: OpenMP over tokens. Compiled once per instruction set (ROPE_ISA names it); everything but the table
// at the end has internal linkage, so that no other instruction set can be linked to these copies.
#include <omp.h>

#include <type_traits>

#include "core/dispatch.h"
#include "core/math.h"
#include "core/params.h"
#include "cpu/isa.h"

namespace rope::cpu {
namespace {

// Pairs of a token whose cos/sin are held converted in L1 while all heads read them: 4 arrays of at most 1 KiB.
constexpr int64_t kPairBlock = 128;

// Bytes of x that occupy a thread longer than it takes to wake it (some 10 us).
constexpr int64_t kGrainBytes = 256 * 1024;

template <class T>
T* at(void* data, int64_t offset) {
  return static_cast<T*>(data) + offset;
}
template <class T>
const T* at(const void* data, int64_t offset) {
  return static_cast<const T*>(data) + offset;
}

// The rotated channels of one tensor at one token: how to reach pair `begin` of head 0, and to step from there.
template <class T>
struct TokenRow {
  T* data;
  Pairing pairing;  // in elements
  int64_t head_stride;
};

template <class T, class Void>
TokenRow<T> token_row(const Params& p, Void* data, const Strides& s, Pairing pairing, int64_t batch, int64_t token,
                      int64_t begin) {
  const int64_t channel = p.rotary_offset + begin * pairing.step;
  return {at<std::remove_const_t<T>>(data, batch * s.batch + token * s.token + channel * s.channel),
          {pairing.step * s.channel, pairing.partner * s.channel},
          s.head};
}

// Calls function(step) with the step between pairs as a constant where the compiler can vectorise it: 1 (half pairing)
// or 2 (interleaved pairing), unit channel stride on both sides; 0 otherwise.
// Without the constants gcc 12 leaves the loop scalar: 4.8 (float32), 6.1 (bfloat16), 2.5 (float16) times slower, half
// pairing, AVX-512, 256 KiB of x.
template <class Function>
void with_constant_step(Pairing a, Pairing b, const Function& function) {
  if (a.step == 1 && b.step == 1) {
    function(std::integral_constant<int, 1>{});
  } else if (a.step == 2 && b.step == 2 && a.partner == 1 && b.partner == 1) {
    function(std::integral_constant<int, 2>{});
  } else {
    function(std::integral_constant<int, 0>{});
  }
}

template <int kStep>
Pairing constant(Pairing pairing) {
  return kStep == 1 ? Pairing{1, pairing.partner} : kStep == 2 ? interleaved_pairing() : pairing;
}

template <class A, class T>
ROPE_INLINE Pair<A> load_pair(const T* row, Pairing pairing, int64_t pair) {
  return {widen(row[pair * pairing.step]), widen(row[pair * pairing.step + pairing.partner])};
}

// ---- rotate ----

// cos and sin of one token for a block of pairs, in arithmetic type; `second` points to `first` in per-pair tables.
template <class A>
struct Angles {
  A cos_first[kPairBlock], sin_first[kPairBlock], cos_buffer[kPairBlock], sin_buffer[kPairBlock];
  const A *cos_second, *sin_second;
};

template <class A>
void load_entries(DType dtype, const void* data, int64_t offset, int64_t stride, int64_t n, bool negate, A* to) {
  dispatch_dtype(dtype, [&](auto tag) {
    const auto* from = at<typename decltype(tag)::type>(data, offset);
    for (int64_t i = 0; i < n; ++i) {
      const A value = static_cast<A>(widen(from[i * stride]));
      to[i] = negate ? -value : value;
    }
  });
}

int64_t entry(const Table& t, int64_t batch, int64_t row, int64_t head, int64_t pair) {
  return batch * t.batch_stride + row * t.row_stride + head * t.head_stride + pair * t.pair_stride;
}

template <class A>
void load_angles(const Params& p, int64_t batch, int64_t row, int64_t head, int64_t begin, int64_t n, Angles<A>* to) {
  const int64_t cos_at = entry(p.cos, batch, row, head, begin), sin_at = entry(p.sin, batch, row, head, begin);
  load_entries(p.table_dtype, p.cos.first, cos_at, p.cos.pair_stride, n, false, to->cos_first);
  load_entries(p.table_dtype, p.sin.first, sin_at, p.sin.pair_stride, n, p.negate_sin, to->sin_first);
  to->cos_second = to->cos_first;
  to->sin_second = to->sin_first;
  if (!p.per_channel) return;
  load_entries(p.table_dtype, p.cos.second, cos_at, p.cos.pair_stride, n, false, to->cos_buffer);
  load_entries(p.table_dtype, p.sin.second, sin_at, p.sin.pair_stride, n, p.negate_sin, to->sin_buffer);
  to->cos_second = to->cos_buffer;
  to->sin_second = to->sin_buffer;
}

template <int kStep, class A, class T>
void rotate_row(const T* in, Pairing from, T* out, Pairing to, const Angles<A>& angles, int64_t n) {
  from = constant<kStep>(from);
  to = constant<kStep>(to);
#pragma omp simd  // in and out are equal or apart, and pairs share no channel
  for (int64_t i = 0; i < n; ++i) {
    const Pair<A> y = rotate_pair(load_pair<A>(in, from, i), Pair<A>{angles.cos_first[i], angles.cos_second[i]},
                                  Pair<A>{angles.sin_first[i], angles.sin_second[i]});
    narrow(y.first, &out[i * to.step]);
    narrow(y.second, &out[i * to.step + to.partner]);
  }
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

template <class T>
void rotate_token(const Params& p, int64_t batch, int64_t token) {
  using A = Arithmetic<T>;
  const int64_t row = table_row(p.positions, batch, token);
  const int64_t pairs = row == kNotRotated ? 0 : p.pairs;
  for (int t = 0; t < p.num_tensors; ++t) {
    copy_channels<T>(p.x[t], batch, token, 0, pairs ? p.rotary_offset : p.x[t].head_dim);
    if (pairs) copy_channels<T>(p.x[t], batch, token, p.rotary_offset + 2 * pairs, p.x[t].head_dim);
  }
  const bool row_per_head = p.cos.head_stride || p.sin.head_stride;
  Angles<A> angles;
  for (int64_t begin = 0; begin < pairs; begin += kPairBlock) {
    const int64_t n = pairs - begin < kPairBlock ? pairs - begin : kPairBlock;
    if (!row_per_head) load_angles(p, batch, row, 0, begin, n, &angles);  // serves all heads of all tensors
    for (int t = 0; t < p.num_tensors; ++t) {
      const RotatedTensor& x = p.x[t];
      const auto in = token_row<const T>(p, x.in, x.in_stride, p.in_pairing, batch, token, begin);
      const auto out = token_row<T>(p, x.out, x.out_stride, p.out_pairing, batch, token, begin);
      with_constant_step(in.pairing, out.pairing, [&](auto step) {
        for (int64_t h = 0; h < x.heads; ++h) {
          if (row_per_head) load_angles(p, batch, row, h, begin, n, &angles);
          rotate_row<step>(in.data + h * in.head_stride, in.pairing, out.data + h * out.head_stride, out.pairing,
                           angles, n);
        }
      });
    }
  }
}

// ---- gradient of the tables ----

// Sums over whatever the table broadcasts over, for a block of pairs of one token.
template <class A>
struct Sums {
  A cos_first[kPairBlock], cos_second[kPairBlock], sin_first[kPairBlock], sin_second[kPairBlock];
};

template <int kStep, class A, class T>
void accumulate_row(const T* x, Pairing x_at, const T* grad, Pairing grad_at, Sums<A>* sums, int64_t n) {
  x_at = constant<kStep>(x_at);
  grad_at = constant<kStep>(grad_at);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const Pair<A> channels = load_pair<A>(x, x_at, i), g = load_pair<A>(grad, grad_at, i);
    const Pair<A> cos = cos_gradient(g, channels), sin = sin_gradient(g, channels);
    sums->cos_first[i] += cos.first;
    sums->cos_second[i] += cos.second;
    sums->sin_first[i] += sin.first;
    sums->sin_second[i] += sin.second;
  }
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
template <class T>
void table_grad_token(const Params& p, int64_t table_batch, int64_t token) {
  using A = Arithmetic<T>;
  const bool row_per_head = p.cos.head_stride != 0;
  const int64_t batch_end = p.cos.batch_stride ? table_batch + 1 : p.batch;
  const int64_t table_heads = row_per_head ? p.x[0].heads : 1;
  Sums<A> sums;
  for (int64_t table_head = 0; table_head < table_heads; ++table_head) {
    for (int64_t begin = 0; begin < p.pairs; begin += kPairBlock) {
      const int64_t n = p.pairs - begin < kPairBlock ? p.pairs - begin : kPairBlock;
      memset(&sums, 0, sizeof(sums));
      for (int64_t b = table_batch; b < batch_end; ++b) {
        for (int t = 0; t < p.num_tensors; ++t) {
          const RotatedTensor& x = p.x[t];
          const auto in = token_row<const T>(p, x.in, x.in_stride, p.in_pairing, b, token, begin);
          const auto grad = token_row<const T>(p, x.out, x.out_stride, p.out_pairing, b, token, begin);
          with_constant_step(in.pairing, grad.pairing, [&](auto step) {
            const int64_t first_head = row_per_head ? table_head : 0;
            const int64_t last_head = row_per_head ? table_head + 1 : x.heads;
            for (int64_t h = first_head; h < last_head; ++h) {
              accumulate_row<step>(in.data + h * in.head_stride, in.pairing, grad.data + h * grad.head_stride,
                                   grad.pairing, &sums, n);
            }
          });
        }
      }
      const int64_t to = entry(p.cos, table_batch, token, table_head, begin);
      store_sums(p.table_dtype, p.per_channel, p.cos, to, sums.cos_first, sums.cos_second, false, n);
      store_sums(p.table_dtype, p.per_channel, p.sin, to, sums.sin_first, sums.sin_second, p.negate_sin, n);
    }
  }
}

// ---- threads ----

int64_t bytes_of_x(const Params& p) {
  const int64_t size = p.dtype == DType::kFloat64 ? 8 : p.dtype == DType::kFloat32 ? 4 : 2;
  int64_t elements = 0;
  for (int t = 0; t < p.num_tensors; ++t) elements += p.x[t].heads * p.x[t].head_dim;
  return elements * p.batch * p.seqlen * size;
}

// Calls function(batch, token) for all tokens of `batch` sequences.
// num_threads(): a bare `omp parallel` ignores torch.set_num_threads() in threads that torch did not start.
template <class Function>
void for_each_token(const Params& p, int64_t batch, int num_threads, const Function& function) {
  const int64_t tokens = batch * p.seqlen, useful = bytes_of_x(p) / kGrainBytes;
  if (num_threads > useful) num_threads = static_cast<int>(useful);
  if (num_threads > tokens) num_threads = static_cast<int>(tokens);
  const auto share = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) function(i / p.seqlen, i % p.seqlen);
  };
  if (num_threads <= 1 || omp_in_parallel()) return share(0, tokens);
#pragma omp parallel num_threads(num_threads)
  {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    share(tokens * thread / threads, tokens * (thread + 1) / threads);
  }
}

void rotate(const Params& p, int num_threads) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    for_each_token(p, p.batch, num_threads,
                   [&](int64_t batch, int64_t token) { rotate_token<typename decltype(tag)::type>(p, batch, token); });
  });
}

void table_grad(const Params& p, int num_threads) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    for_each_token(p, p.cos.batch_stride ? p.batch : 1, num_threads, [&](int64_t batch, int64_t token) {
      table_grad_token<typename decltype(tag)::type>(p, batch, token);
    });
  });
}

}  // namespace

#define ROPE_CONCAT_(a, b) a##b
#define ROPE_CONCAT(a, b) ROPE_CONCAT_(a, b)
#define ROPE_STRING_(a) #a
#define ROPE_STRING(a) ROPE_STRING_(a)
extern const Kernels ROPE_CONCAT(kernels_, ROPE_ISA);
const Kernels ROPE_CONCAT(kernels_, ROPE_ISA) = {ROPE_STRING(ROPE_ISA), rotate, table_grad};

}  // namespace rope::cpu
