// The derivatives of norm and rotation (core/norm.h), in blocks of kBlockTokens tokens of one tensor. For each token,
// the heads are processed in groups that fit in cache: their gradients are rotated back into scratch memory of the
// arithmetic type, then summed over each head, then combined into the gradients of x and of the weight.
#pragma once

#include <algorithm>

#include "core/integer.h"
#include "core/norm.h"
#include "core/params.h"
#include "cpu/angles.h"
#include "cpu/norm.h"
#include "cpu/norm_grad_rows.h"
#include "cpu/rotate.h"

namespace rope::cpu {
namespace {

// Maximum rotated gradients in scratch memory: 8 KiB of float32.
constexpr int64_t kMostKept = 2048;

// Levels of the tree over the tokens of a block, including the leaves.
constexpr int kLevels = 5;
static_assert(int64_t{1} << (kLevels - 1) == kBlockTokens, "the tree of a block has kLevels levels");

// The scratch memory of one thread, in rows of `stride` numbers. `weight`, `sum` and `levels` are in run order
// (elements.h). sum: the gradient of the weight at one token. levels: row i holds a sum of 2^i tokens until the next
// 2^i are summed.
template <class A>
struct NormGradMemory {
  int64_t stride, heads;  // heads: processed at a time, with their gradients and corrections
  A *weight, *sum, *levels, *gradient, *corrections;

  NormGradMemory(A* data, int64_t head_dim, int64_t most_heads)
      : stride(round_up(head_dim, kSumLanes)),
        heads(std::clamp<int64_t>(kMostKept / stride, 1, most_heads)),
        weight(data),
        sum(weight + stride),
        levels(sum + stride),
        gradient(levels + kLevels * stride),
        corrections(gradient + heads * stride) {}

  // The size of the memory in numbers.
  int64_t size() const { return corrections + room_for<A>(heads) - weight; }
};

// ---- one token ----

// Stores the rotated gradients of heads [first, first + rows.count) in `kept`. rows: of the tensor's first token and
// head.
template <Access kAccess, class T>
void keep_rotated(const NormGradParams& p, int t, Rows<T, Arithmetic<T>> rows, int64_t batch, int64_t token,
                  int64_t row, int64_t first, Arithmetic<T>* kept) {
  const RotatedTensor& x = p.x[t];
  const Strides& s = x.in_stride;
  const int64_t heads = rows.count;
  const auto unpack = [&](int64_t begin, int64_t end) {
    for (int64_t h = 0; h < heads && begin < end; ++h) {
      const T* from = at<T>(x.in, row_offset(s, batch, token, first + h) + begin * s.channel);
      for_each_step<T>(end - begin, [&](auto full, int64_t i, int64_t n) {
        const auto v = read_channels<T, full>(from + i * s.channel, s.channel, n);
        keep_run<full, T>(v, kept + h * rows.out_stride + begin + i, n, rows.in_run_order);
      });
    }
  };
  unpack(0, p.rotary_offset);
  unpack(p.rotary_offset + 2 * p.pairs, x.head_dim);

  Angles<Arithmetic<T>> angles;
  angles.per_channel = p.source == Source::kPerChannel;
  const bool together = p.table_heads == 1;
  if (!together) rows.count = 1;
  for (int64_t h = 0; h < (together ? 1 : heads); ++h) {
    for (int64_t begin = 0; begin < p.pairs; begin += kPairBlock) {
      const int64_t n = std::min(p.pairs - begin, kPairBlock);
      load_angles<T, kAccess>(p, batch, token, row, together ? 0 : first + h, begin, n, angles.entries);
      Rows<T, Arithmetic<T>> block = rows;
      block.in += row_offset(s, batch, token, first + h) + begin * rows.from.step;
      block.out = kept + h * rows.out_stride + p.rotary_offset + begin * rows.to.step;
      if constexpr (sizeof(T) == 2) {
        if (p.round_weighted) {
          rotate_rows<kAccess, false, false, true>(block, angles, n);
          continue;
        }
      }
      rotate_rows<kAccess, false, false, false>(block, angles, n);
    }
  }
}

// Writes the gradient of x at one token; memory.sum receives the gradient of the weight. rows: see keep_rotated.
template <Access kAccess, bool kNonTemporal, class T>
void norm_grad_token(const NormGradParams& p, int t, const Rows<T, Arithmetic<T>>& rows, int64_t prefetch,
                     int64_t batch, int64_t token, const NormGradMemory<Arithmetic<T>>& memory) {
  using A = Arithmetic<T>;
  const RotatedTensor& x = p.x[t];
  const NormGradTensor& of_norm = p.of_norm[t];
  const int64_t row =
      p.source == Source::kFrequencies ? sequence_start(p.positions, token) : table_row(p.positions, batch, token);
  memset(memory.sum, 0, memory.stride * sizeof(A));
  if (row == kNotRotated) {
    if (x.out) copy_channels<T>(x, batch, token, 0, x.head_dim);
    return;
  }
  const Strides& s = of_norm.x_stride;
  for (int64_t first = 0; first < x.heads; first += memory.heads) {
    Rows<T, A> some = rows;
    some.count = std::min(memory.heads, x.heads - first);
    keep_rotated<kAccess>(p, t, some, batch, token, row, first, memory.gradient);

    NormGradRows<T> kept{};
    kept.x = at<T>(of_norm.x, row_offset(s, batch, token, first));
    if (x.out) kept.grad_x = at<T>(x.out, row_offset(x.out_stride, batch, token, first));
    kept.gradient = memory.gradient;
    kept.weight = memory.weight;
    kept.inv_rms = static_cast<const A*>(p.norm[t].inv_rms) + (batch * p.seqlen + token) * x.heads + first;
    kept.corrections = memory.corrections;
    kept.sum = memory.sum;
    kept.heads = some.count;
    kept.x_stride = s.head;
    kept.grad_x_stride = x.out_stride.head;
    kept.gradient_stride = memory.stride;
    kept.x_channel = s.channel;
    kept.grad_x_channel = x.out_stride.channel;
    kept.in_run_order = rows.in_run_order;

    constexpr bool kOneOrder = std::is_same_v<Lanes<T>, Vector<A>>;
    if (s.channel == 1 && x.out && x.out_stride.channel == 1 && (kOneOrder || rows.in_run_order)) {
      correct_heads<true>(kept, x.head_dim, prefetch, memory.corrections);
      norm_gradients<kNonTemporal, true>(kept, x.head_dim);
    } else {
      correct_heads<false>(kept, x.head_dim, prefetch, memory.corrections);
      norm_gradients<kNonTemporal, false>(kept, x.head_dim);
    }
  }
}

// ---- a block of tokens ----

// Adds memory.sum, of token i of the block, to the tree.
template <class A>
void add_token(const NormGradMemory<A>& memory, int64_t i) {
  A* before = memory.levels;
  for (; i & 1; i >>= 1, before += memory.stride) {
    for (int64_t c = 0; c < memory.stride; ++c) memory.sum[c] = before[c] + memory.sum[c];
  }
  memcpy(before, memory.sum, memory.stride * sizeof(A));
}

// Writes the sum of the block's `tokens` tokens. The zeros in place of missing tokens need no addition.
template <class T>
void store_block(const NormGradMemory<Arithmetic<T>>& memory, int64_t tokens, int64_t head_dim, Arithmetic<T>* to) {
  using A = Arithmetic<T>;
  bool empty = true;
  for (int level = 0; level < kLevels; ++level) {
    if (!(tokens >> level & 1)) continue;
    const A* before = memory.levels + level * memory.stride;
    for (int64_t c = 0; c < memory.stride; ++c) memory.sum[c] = empty ? before[c] : before[c] + memory.sum[c];
    empty = false;
  }
  for_each_step<T>(head_dim, [&](auto full, int64_t c, int64_t n) {
    write_run<full, T>(read_lanes<Lanes<T>>(memory.sum + c), to + c, n);
  });
}

// Processes block `block` of the tokens of tensor t, which must be normalized. rows: see keep_rotated. prefetch:
// Plan::prefetch_input of t.
template <Access kAccess, bool kNonTemporal, class T>
void norm_grad_block(const NormGradParams& p, int t, const Rows<T, Arithmetic<T>>& rows, int64_t prefetch,
                     int64_t block, Arithmetic<T>* data) {
  using A = Arithmetic<T>;
  const RotatedTensor& x = p.x[t];
  const NormGradMemory<A> memory(data, x.head_dim, x.heads);
  for_each_step<T>(x.head_dim, [&](auto full, int64_t c, int64_t n) {
    const A* weight = static_cast<const A*>(p.norm[t].weight) + c;
    write_lanes(memory.weight + c, read_weights<T, full>(weight, n));
  });
  Rows<T, A> kept = rows;
  kept.out_stride = memory.stride;
  const int64_t begin = block * kBlockTokens, tokens = std::min(p.batch * p.seqlen - begin, kBlockTokens);
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t batch = (begin + i) / p.seqlen, token = (begin + i) % p.seqlen;
    norm_grad_token<kAccess, kNonTemporal>(p, t, kept, prefetch, batch, token, memory);
    if (p.of_norm[t].block_sums) add_token(memory, i);
  }
  if (!p.of_norm[t].block_sums) return;
  store_block<T>(memory, tokens, x.head_dim, static_cast<A*>(p.of_norm[t].block_sums) + block * x.head_dim);
}

// Adds the sums of the blocks in tree order, in place, and copies the result to grad_weight.
template <class A>
void add_blocks(const NormGradTensor& of_norm, int64_t blocks, int64_t head_dim) {
  A* sums = static_cast<A*>(of_norm.block_sums);
  for (; blocks > 1; blocks = (blocks + 1) / 2) {
    for (int64_t i = 0; 2 * i < blocks; ++i) {
      const A *first = sums + 2 * i * head_dim, *second = first + head_dim;
      for (int64_t c = 0; c < head_dim; ++c) {
        sums[i * head_dim + c] = 2 * i + 1 < blocks ? first[c] + second[c] : first[c];
      }
    }
  }
  memcpy(of_norm.grad_weight, sums, head_dim * sizeof(A));
}

}  // namespace
}  // namespace rope::cpu
