// Checks tensors that are written, and gradients of x.
#include <algorithm>

#include "bindings/check.h"
#include "bindings/overlap.h"

namespace rope {
namespace {

// check_arguments has ensured that t has at most kMaxRank axes.
MemoryView memory_of(const Tensor& t) {
  return memory_view(t.const_data_ptr(), t.element_size(), static_cast<int>(t.dim()), t.sizes().data(),
                     t.strides().data());
}

bool same_view(const MemoryView& a, const MemoryView& b) {
  return a.data == b.data && std::equal(a.sizes, a.sizes + a.rank, b.sizes) &&
         std::equal(a.strides, a.strides + a.rank, b.strides);
}

void keep_apart(const char* name, const MemoryView& written, const MemoryView& other, const Tensor& tensor,
                const char* what) {
  if (overlap(written, other))
    bad_value(name, text("not overlap ", what), text("memory shared with a tensor of shape ", shape_of(tensor)));
}

void check_like_x(const Arguments& a, const Tensors& others, const char* name) {
  if (others.size() != a.x.size()) bad_value(name, text("hold ", a.x.size(), " tensors, as many as x"), others.size());
  for (size_t i = 0; i < others.size(); ++i) {
    same_device(name, others[i], a.x[i]);
    if (others[i].scalar_type() != a.x[i].scalar_type()) {
      bad_type(name, text("have the dtype of x, ", name_of(a.x[i].scalar_type())), name_of(others[i].scalar_type()));
    }
    if (!same_shape(others[i], a.x[i]))
      bad_value(name, text("have the shape of x, ", shape_of(a.x[i])), shape_of(others[i]));
  }
}

}  // namespace

void check_written(const Arguments& a, const Tensors& out, const char* name) {
  if (&out != &a.x) check_like_x(a, out, name);
  const auto check_pairing = [&] {
    if (!a.other_pairing()) return;
    bad_value("out_interleaved", "match the pairing of x when x is written", a.interleaved() ? "False" : "True");
  };
  if (&out == &a.x) check_pairing();
  MemoryView written[kMaxTensors];
  for (size_t i = 0; i < out.size(); ++i) {
    written[i] = memory_of(out[i]);
    if (overlaps_itself(written[i])) bad_value(name, "have no internal overlap", text("strides ", strides_of(out[i])));
    for (size_t j = 0; j < i; ++j) keep_apart(name, written[i], written[j], out[j], "another tensor that is written");
  }
  const auto keep_all_apart = [&](const Tensor& other, const char* what) {
    const MemoryView view = memory_of(other);
    for (size_t i = 0; i < out.size(); ++i) keep_apart(name, written[i], view, other, what);
  };
  for (size_t j = 0; j < a.x.size() && &out != &a.x; ++j) {
    const MemoryView view = memory_of(a.x[j]);
    for (size_t i = 0; i < out.size(); ++i) {
      if (j == i && same_view(written[i], view)) {
        if (a.x[j].numel()) check_pairing();
        continue;
      }
      keep_apart(name, written[i], view, a.x[j], "x, unless both are the same view");
    }
  }
  keep_all_apart(a.cos, "cos");
  keep_all_apart(a.sin, "sin");
  if (a.positions) keep_all_apart(*a.positions, "positions");
  if (a.offsets) keep_all_apart(*a.offsets, "offset");
  if (a.cu_seqlens) keep_all_apart(*a.cu_seqlens, "cu_seqlens");
  for (const OptionalTensor& weight : a.norm) {
    if (weight) keep_all_apart(*weight, "norm");
  }
}

void check_apart(const Tensors& read, const Tensors& out, const char* what) {
  for (const Tensor& t : read) {
    const MemoryView view = memory_of(t);
    for (const Tensor& written : out) keep_apart("out", memory_of(written), view, t, what);
  }
}

void check_table_grad(const Arguments& a, const Tensors& grad) {
  check_like_x(a, grad, "grad");
  if (a.cos.dim() < 3 || a.from_frequencies()) bad_value("cos", "have one row per token", shape_of(a.cos));
}

}  // namespace rope
