// Every check, and the way from tensors to core/params.h: below this line nothing knows a tensor, above it nothing a
// pointer.
#pragma once

#include <algorithm>

#include "bindings/errors.h"
#include "bindings/tensor.h"
#include "core/flags.h"
#include "core/params.h"

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
  OptionalTensor offsets;  // `offset` as a Tensor: one number, or (batch,)
  OptionalTensor cu_seqlens;

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
  // A table with an entry per channel has the order of the result, in the transposed op too, which reads it.
  bool tables_interleaved() const { return interleaved() != (other_pairing() && !transposed()); }
};

// Where the axes of a layout are; -1: there is no batch axis, batch is 1. In the order of LAYOUTS in rope_ext/ops.py.
struct Layout {
  const char* name;
  int rank, batch, seqlen, heads;  // head_dim is the last axis
};
constexpr Layout kLayouts[] = {
    {"bshd", 4, 0, 1, 2}, {"bhsd", 4, 0, 2, 1}, {"sbhd", 4, 1, 0, 2}, {"thd", 3, -1, 0, 1}, {"shd", 3, -1, 0, 1},
};

inline const Layout& layout_of(const Arguments& a) { return kLayouts[a.layout()]; }
inline int64_t size_of(const Tensor& t, int axis) { return axis < 0 ? 1 : t.size(axis); }
// 0 along an axis of one element, whose stride may be any number.
inline int64_t stride_of(const Tensor& t, int axis) { return axis < 0 || t.size(axis) == 1 ? 0 : t.stride(axis); }

// The layout of tables for x of a layout: with a heads axis that of x, and with the batch axis (of one) that "thd" and
// "shd" lack.
inline Layout table_layout(const Layout& x, const Tensor& table) {
  if (table.dim() == 2) return {"", 2, -1, 0, -1};
  if (table.dim() == 3) return {"", 3, 0, 1, -1};
  return x.batch < 0 ? Layout{"", 4, 0, 1, 2} : x;
}

// TypeError where the kernels do not know the dtype.
inline DType dtype_of(const char* argument, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      bad_type(argument, "be float64, float32, bfloat16 or float16", name_of(t.scalar_type()));
  }
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  const auto x = a.sizes(), y = b.sizes();
  return x.size() == y.size() && std::equal(x.begin(), x.end(), y.begin());
}
inline Pairing pairing_of(bool interleaved, int64_t pairs) {
  return interleaved ? interleaved_pairing() : half_pairing(pairs);
}

// All rules but those of outputs. Raises ValueError or TypeError (errors.h), "rope_ext: <argument> must <rule>, got
// <value>", before anything is written. The tensors are left out of the result.
RotateParams check_arguments(const Arguments& a);

// Raises unless cos and sin are frequencies.
void check_cos_sin(const Arguments& a);

// The cos and sin part of check_arguments: tables, or frequencies (check_tables.cpp).
void check_tables(const Arguments& a, RotateParams* p);

// The positions, offset and cu_seqlens part of check_arguments (check_lookup.cpp).
void check_lookup(const Arguments& a, RotateParams* p);

// Raises unless out[i] has the shape, dtype and device of x[i], and nothing that is written shares memory with itself
// or anything else that is read or written; out[i] may be x[i]. `name`: of the argument that is written.
void check_written(const Arguments& a, const Tensors& out, const char* name);

// Raises unless the tables have one row per token, and grad[i] has the shape, dtype and device of x[i].
void check_table_grad(const Arguments& a, const Tensors& grad);

// `in` must not be empty: its strides are used.
RotatedTensor rotated_tensor(const Arguments& a, const Tensor& in, const Tensor& out);
GradTensor grad_tensor(const Arguments& a, const Tensor& x, const Tensor& grad);
// Lets p write the gradients of the tables to cos and sin, tensors like a.cos.
void set_table_grad(const Arguments& a, const Tensor& cos, const Tensor& sin, TableGradParams* p);

}  // namespace rope
