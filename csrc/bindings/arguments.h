// The arguments of the ops, and the layouts of x that they name.
#pragma once

#include "bindings/tensor.h"
#include "core/flags.h"

namespace rope {

// The arguments that all ops of schema.cpp share, in their order. Shapes and rules: docstring of rope_ext.apply.
struct Arguments {
  Tensors x;
  Tensor cos, sin;
  int64_t offset;
  int64_t flags;  // core/flags.h
  std::optional<int64_t> rotary_dim;
  int64_t rotary_offset;
  double attention_scaling;
  OptionalTensor positions;
  OptionalTensor offsets;  // added to `offset`: one number, or (batch,)
  OptionalTensor cu_seqlens;
  std::vector<OptionalTensor> norm;  // the weight of each tensor of x, or none; empty: no tensor is normalised
  double eps;

  int64_t layout() const { return flags & kLayoutMask; }  // index into kLayouts
  bool interleaved() const { return flags & kInterleaved; }
  bool inverse() const { return flags & kInverse; }
  bool transposed() const { return flags & kTransposed; }
  bool from_frequencies() const { return flags & kFrequencies; }
  bool round_products() const { return flags & kRoundProducts; }
  bool other_pairing() const { return flags & kOtherPairing; }
  bool says_width() const { return flags & kSaysWidth; }
  bool says_per_channel() const { return flags & kPerChannel; }
  // Whether the offset may differ between the sequences of a batch.
  bool offset_per_batch() const { return offsets && offsets->numel() != 1; }
  // The pairing of tables with one entry per channel: that of the result, which the transposed op reads as x.
  bool tables_interleaved() const { return interleaved() != (other_pairing() && !transposed()); }
};

// The axes of a layout; -1: there is none, and the size is 1. kLayouts has the order of LAYOUTS in
// rope_ext/reference.py.
struct Layout {
  const char* name;
  int rank, batch, seqlen, heads;  // head_dim is the last axis
};
constexpr Layout kLayouts[] = {
    {"bshd", 4, 0, 1, 2}, {"bhsd", 4, 0, 2, 1}, {"sbhd", 4, 1, 0, 2}, {"thd", 3, -1, 0, 1}, {"shd", 3, -1, 0, 1},
};

inline const Layout& layout_of(const Arguments& a) { return kLayouts[a.layout()]; }
inline int64_t size_of(const Tensor& t, int axis) { return axis < 0 ? 1 : t.size(axis); }
// The stride along an axis; 0 where the axis has one element, because its stride may be any number.
inline int64_t stride_of(const Tensor& t, int axis) { return axis < 0 || t.size(axis) == 1 ? 0 : t.stride(axis); }

// The layout of a table for x of layout `x`. A table with a heads axis has the layout of x, plus a batch axis of size 1
// where x has none.
inline Layout table_layout(const Layout& x, const Tensor& table) {
  if (table.dim() == 2) return {"", 2, -1, 0, -1};
  if (table.dim() == 3) return {"", 3, 0, 1, -1};
  return x.batch < 0 ? Layout{"", 4, 0, 1, 2} : x;
}

}  // namespace rope
