// The arguments of the ops, and the layouts of x that `flags` selects.
#pragma once

#include "bindings/tensor.h"
#include "core/flags.h"

namespace rope {

// The arguments that all ops of schema.cpp share, in schema order. The docstring of rope_ext.apply has the rules in
// full.
struct Arguments {
  Tensors x;                          // 1 to kMaxTensors tensors, each with the axes of the layout
  Tensor cos, sin;                    // tables; with kFrequencies, the high and low parts of inv_freq
  int64_t offset;                     // added to every position
  int64_t flags;                      // core/flags.h
  std::optional<int64_t> rotary_dim;  // channels; none: all from rotary_offset on
  int64_t rotary_offset;              // the first rotated channel
  double attention_scaling;           // factor on cos and sin, with kFrequencies only
  OptionalTensor positions;           // (seqlen,) or (batch or 1, seqlen); with kFrequencies, axes may come first
  OptionalTensor offsets;             // one number or (batch,), added to `offset`
  OptionalTensor cu_seqlens;          // (nseq + 1,)
  std::vector<OptionalTensor> norm;   // one weight (head_dim,) or none per tensor of x; empty: nothing is normalized
  double eps;                         // added to the mean square of a head

  int64_t layout() const { return flags & kLayoutMask; }  // index into kLayouts
  bool interleaved() const { return flags & kInterleaved; }
  bool inverse() const { return flags & kInverse; }
  bool transposed() const { return flags & kTransposed; }
  bool from_frequencies() const { return flags & kFrequencies; }
  bool round_products() const { return flags & kRoundProducts; }
  bool other_pairing() const { return flags & kOtherPairing; }
  bool says_width() const { return flags & kSaysWidth; }
  bool says_per_channel() const { return flags & kPerChannel; }
  // Whether the sequences of a batch may have different offsets.
  bool offset_per_batch() const { return offsets && offsets->numel() != 1; }
  // Whether tables with one entry per channel are interleaved. They have the pairing of the result, which is x in the
  // transposed op.
  bool tables_interleaved() const { return interleaved() != (other_pairing() && !transposed()); }
};

// The index of each axis in a layout; -1: absent, size 1. kLayouts is in the order of LAYOUTS in rope_ext/reference.py.
struct Layout {
  const char* name;
  int rank, batch, seqlen, heads;  // head_dim is the last axis
};
constexpr Layout kLayouts[] = {
    {"bshd", 4, 0, 1, 2}, {"bhsd", 4, 0, 2, 1}, {"sbhd", 4, 1, 0, 2}, {"thd", 3, -1, 0, 1}, {"shd", 3, -1, 0, 1},
};

inline const Layout& layout_of(const Arguments& a) { return kLayouts[a.layout()]; }
inline int64_t size_of(const Tensor& t, int axis) { return axis < 0 ? 1 : t.size(axis); }
// The stride along an axis in elements; 0 for an axis of size 1, whose stride is arbitrary.
inline int64_t stride_of(const Tensor& t, int axis) { return axis < 0 || t.size(axis) == 1 ? 0 : t.stride(axis); }

// The layout of a cos/sin table, given the layout of x. A table with a heads axis has the layout of x; if x has no
// batch axis, the table has one of size 1.
inline Layout table_layout(const Layout& x, const Tensor& table) {
  if (table.dim() == 2) return {"", 2, -1, 0, -1};
  if (table.dim() == 3) return {"", 3, 0, 1, -1};
  return x.batch < 0 ? Layout{"", 4, 0, 1, 2} : x;
}

}  // namespace rope
