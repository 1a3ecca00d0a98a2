// Derives from the arguments of a kernel the memory that it works on: every element, and how the kernel may access it.
#pragma once

#include <cstdint>
#include <vector>

#include "core/integer.h"
#include "core/norm.h"
#include "core/params.h"
#include "core/revolutions.h"

namespace rope {

// A strided view of memory, strides in elements of `item` bytes. A kernel writes each of its bytes at least `least` and
// at most `most` times, and may read them where `read` is not 0.
struct Span {
  const void* data;
  int64_t item, sizes[4], strides[4];
  int32_t read, least, most;
};

inline constexpr int32_t kInput[] = {1, 0, 0}, kOutput[] = {0, 1, 1};
inline constexpr int32_t kInPlace[] = {1, 0, 1};  // a token that is not rotated need not be written
inline constexpr int32_t kCopied[] = {0, 1, 2};   // the last vector of an odd number may be written twice
inline constexpr int32_t kNormalisedInPlace[] = {1, 0, 2};

// The memory of one call. use: one of the constants above, {read, least, most}.
struct Memory {
  std::vector<Span> spans;

  void add(const void* data, int64_t item, const int64_t (&sizes)[4], const int64_t (&strides)[4],
           const int32_t (&use)[3]) {
    if (data == nullptr) return;
    Span span = {data, item, {}, {}, use[0], use[1], use[2]};
    for (int i = 0; i < 4; ++i) {
      span.sizes[i] = sizes[i];
      span.strides[i] = strides[i];
    }
    spans.push_back(span);
  }

  // Adds the channels [first, first + channels) of a tensor.
  void add_channels(const Rotation& p, const void* data, const Strides& s, int64_t heads, int64_t first,
                    int64_t channels, const int32_t (&use)[3]) {
    const int64_t item = bytes_of(p.dtype);
    if (data == nullptr) return;
    add(static_cast<const char*>(data) + first * s.channel * item, item, {p.batch, p.seqlen, heads, channels},
        {s.batch, s.token, s.head, s.channel}, use);
  }

  template <class Data>
  void add_table(const TableView<Data>& t, int64_t item, int64_t batch, int64_t rows, int64_t heads, int64_t pairs,
                 const int32_t (&use)[3]) {
    const int64_t strides[] = {t.batch_stride, t.row_stride, t.head_stride, t.pair_stride};
    add(t.first, item, {batch, rows, heads, pairs}, strides, use);
    if (t.second != t.first) add(t.second, item, {batch, rows, heads, pairs}, strides, use);
  }

  void add_positions(const Tokens& p, int64_t axes, int64_t item_of_fractional) {
    const Positions& at = p.positions;
    const auto item = [](const Index& index) { return index.is_64 ? 8 : 4; };
    add(at.positions.data, at.fractional ? item_of_fractional : item(at.positions), {1, axes, p.batch, p.seqlen},
        {0, at.positions_axis_stride, at.positions_batch_stride, at.positions_token_stride}, kInput);
    add(at.offsets.data, item(at.offsets), {1, 1, 1, p.batch}, {0, 0, 0, at.offsets_stride}, kInput);
    add(at.cu_seqlens.data, item(at.cu_seqlens), {1, 1, 1, at.nseq + 1}, {0, 0, 0, at.cu_seqlens_stride}, kInput);
  }

  void add_frequencies(const Frequencies& f, int64_t item, int64_t heads, int64_t pairs) {
    for (const FrequencyPart* part : {&f.high, &f.low}) {
      add(part->data, item, {1, f.axes, heads, pairs}, {0, part->axis_stride, part->head_stride, 1}, kInput);
    }
  }

  void add_contiguous(const void* data, int64_t item, int64_t count, const int32_t (&use)[3]) {
    add(data, item, {1, 1, 1, count}, {0, 0, 0, 1}, use);
  }
};

inline int64_t bytes_of_arithmetic(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

inline Memory memory_of(const RotateParams& p) {
  Memory memory;
  for (int i = 0; i < p.num_tensors; ++i) {
    const RotatedTensor& x = p.x[i];
    const int64_t end = p.rotary_offset + 2 * p.pairs;
    const auto add = [&](const void* data, const Strides& s, int64_t first, int64_t channels, const int32_t (&use)[3]) {
      memory.add_channels(p, data, s, x.heads, first, channels, use);
    };
    const Norm& norm = p.norm[i];
    if (norm.weight) {
      memory.add(norm.weight, bytes_of(norm.weight_dtype), {1, 1, 1, x.head_dim}, {0, 0, 0, norm.weight_stride},
                 kInput);
      memory.add_contiguous(norm.inv_rms, bytes_of_arithmetic(p.dtype), p.batch * p.seqlen * x.heads, kOutput);
    }
    if (x.in == x.out) {
      add(x.in, x.in_stride, p.rotary_offset, 2 * p.pairs, kInPlace);
      if (norm.weight) {
        add(x.in, x.in_stride, 0, p.rotary_offset, kNormalisedInPlace);
        add(x.in, x.in_stride, end, x.head_dim - end, kNormalisedInPlace);
      }
    } else {
      add(x.in, x.in_stride, 0, x.head_dim, kInput);
      add(x.out, x.out_stride, p.rotary_offset, 2 * p.pairs, kOutput);
      add(x.out, x.out_stride, 0, p.rotary_offset, kCopied);
      add(x.out, x.out_stride, end, x.head_dim - end, kCopied);
    }
  }
  if (p.source == Source::kFrequencies) {
    memory.add_frequencies(p.frequencies, bytes_of_arithmetic(p.dtype), p.table_heads, p.pairs);
    memory.add_positions(p, p.frequencies.axes, bytes_of_arithmetic(p.dtype));
  } else {
    for (const Table* table : {&p.cos, &p.sin}) {
      memory.add_table(*table, bytes_of(p.table_dtype), p.batch, p.positions.rows, p.table_heads, p.pairs, kInput);
    }
    memory.add_positions(p, 1, 0);
  }
  return memory;
}

// The memory of the first kernel of the gradients of a norm; a second kernel adds its sums of blocks of tokens.
inline Memory memory_of(const NormGradParams& p) {
  RotateParams rotation = p;
  for (Norm& norm : rotation.norm) norm.inv_rms = nullptr;
  Memory memory = memory_of(rotation);
  for (int i = 0; i < p.num_tensors; ++i) {
    const int64_t heads = p.x[i].heads, head_dim = p.x[i].head_dim, item = bytes_of_arithmetic(p.dtype);
    const NormGradTensor& of_norm = p.of_norm[i];
    memory.add_channels(p, of_norm.x, of_norm.x_stride, heads, 0, head_dim, kInput);
    memory.add_contiguous(p.norm[i].inv_rms, item, p.batch * p.seqlen * heads, kInput);
    memory.add_contiguous(of_norm.block_sums, item, quotient_up(p.batch * p.seqlen, kBlockTokens) * head_dim, kOutput);
  }
  return memory;
}

inline Memory memory_of(const TableGradParams& p) {
  Memory memory;
  for (int i = 0; i < p.num_tensors; ++i) {
    const GradTensor& x = p.x[i];
    memory.add_channels(p, x.x, x.x_stride, x.heads, p.rotary_offset, 2 * p.pairs, kInput);
    memory.add_channels(p, x.grad, x.grad_stride, x.heads, p.rotary_offset, 2 * p.pairs, kInput);
  }
  for (const WrittenTable* table : {&p.cos, &p.sin}) {
    memory.add_table(*table, bytes_of(p.table_dtype), p.table_batches, p.seqlen, p.table_heads, p.pairs, kOutput);
  }
  return memory;
}

inline Memory memory_of(const CosSinParams& p) {
  const int64_t item = bytes_of(p.dtype);
  Memory memory;
  memory.add_frequencies(p.frequencies, item, p.heads, p.pairs);
  memory.add_positions(p, p.frequencies.axes, item);
  for (const void* table : {p.cos_out, p.sin_out}) {
    memory.add_contiguous(table, item, p.batch * p.seqlen * p.heads * p.pairs, kOutput);
  }
  memory.add_contiguous(p.positions_out, item, p.frequencies.axes * p.batch * p.seqlen, kOutput);
  return memory;
}

inline Memory memory_of(const RevolutionsParams& p) {
  Memory memory;
  memory.add(p.radians, bytes_of(p.dtype), {1, p.axes, p.heads, p.pairs},
             {0, p.axis_stride, p.head_stride, p.pair_stride}, kInput);
  for (const void* part : {p.high, p.low}) {
    memory.add_contiguous(part, bytes_of(p.arithmetic), p.axes * p.heads * p.pairs, kOutput);
  }
  return memory;
}

}  // namespace rope
