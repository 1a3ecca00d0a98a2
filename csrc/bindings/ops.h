// The boxed kernels of all ops, shared by all devices. A Device provides
//   static Tensor empty_like(const Tensor& x, bool* unmapped);              allocates a result (output.h)
//   static void rotate(const RotateParams&, const Tensor& x);               the kernels, on the device of x
//   static void norm_grad(const NormGradParams&, const Tensor& x);
//   static void table_grad(const TableGradParams&, const Tensor& x);
//   static void table_rows(const Tokens&, int64_t* rows, bool checked, const Tensor& x);  checked by check_lookup
//   static void cos_sin(const CosSinParams&, const Tensor& x);
//   static void revolutions(const RevolutionsParams&, const Tensor& inv_freq);
#pragma once

#include <torch/csrc/stable/ops.h>

#include "bindings/check.h"
#include "bindings/output.h"
#include "bindings/stack.h"
#include "bindings/view.h"
#include "core/integer.h"
#include "core/norm.h"

namespace rope {

// The arguments of norm_grad. wanted: see schema.cpp.
struct NormGradArguments {
  NormGradArguments(StableIValue* stack, uint64_t count)
      : input(unbox_list(stack[0])),
        inv_rms(unbox_list(stack[1])),
        wanted(torch::stable::detail::to<int64_t>(stack[2])),
        a(unbox(stack + 3, count - 3)) {}
  Tensors input, inv_rms;
  int64_t wanted;
  Arguments a;  // x: the gradients of the result
};

// An uninitialized tensor of the arithmetic type, on the device of x.
inline Tensor new_arithmetic(const Rotation& p, const Tensor& x, std::initializer_list<int64_t> sizes) {
  const bool is_64 = p.dtype == DType::kFloat64;
  return new_empty(x, sizes, is_64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32());
}

template <class Device>
struct Ops {
  static void rotate(StableIValue* stack, uint64_t count, uint64_t) {
    const Arguments a = unbox(stack, count);
    RotateParams p = check_arguments(a);
    Tensors out;
    out.reserve(a.x.size());
    for (const Tensor& x : a.x) out.push_back(Device::empty_like(x, &p.output_unmapped));
    rotate_tensors(p, a, out);
    stack[0] = box(std::move(out));
  }

  static void rotate_out(StableIValue* stack, uint64_t count, uint64_t) {
    const Tensors out = unbox_list(stack[0]);
    const Arguments a = unbox(stack + 1, count - 1);
    RotateParams p = check_arguments(a);
    check_written(a, out, "out");
    rotate_tensors(p, a, out);
  }

  static void rotate_(StableIValue* stack, uint64_t count, uint64_t) {
    const Arguments a = unbox(stack, count);
    RotateParams p = check_arguments(a);
    check_written(a, a.x, "x");
    rotate_tensors(p, a, a.x);
  }

  static void check_in_place(StableIValue* stack, uint64_t count, uint64_t) {
    const Arguments a = unbox(stack, count);
    check_arguments(a);
    check_written(a, a.x, "x");
  }

  static void check(StableIValue* stack, uint64_t count, uint64_t) { check_arguments(unbox(stack, count)); }
  static void nothing(StableIValue* stack, uint64_t count, uint64_t) { unbox(stack, count); }

  static void norm_rotate(StableIValue* stack, uint64_t count, uint64_t) {
    const Arguments a = unbox(stack, count);
    RotateParams p = check_arguments(a);
    Tensors out, inv_rms;
    for (size_t i = 0; i < a.x.size(); ++i) {
      out.push_back(Device::empty_like(a.x[i], &p.output_unmapped));
      const bool normalised = !a.norm.empty() && a.norm[i];
      const int64_t heads = a.x[i].size(layout_of(a).heads);
      inv_rms.push_back(normalised ? new_arithmetic(p, a.x[i], {p.batch, p.seqlen, heads})
                                   : new_arithmetic(p, a.x[i], {0}));
    }
    rotate_tensors(p, a, out, &inv_rms);
    stack[0] = box(std::move(out));
    stack[1] = box(std::move(inv_rms));
  }

  static void norm_grad(StableIValue* stack, uint64_t count, uint64_t) {
    const NormGradArguments n(stack, count);
    NormGradParams p{};
    static_cast<RotateParams&>(p) = check_arguments(n.a);
    check_norm_grad(n.a, p, n.input, n.inv_rms);
    Tensors out;
    for (size_t i = 0; i < n.input.size(); ++i) {
      const Tensor& x = n.input[i];
      out.push_back(n.wanted >> i & 1 ? Device::empty_like(x, &p.output_unmapped) : new_empty(x, {0}, x.dtype()));
    }
    Tensors grad_norm = differentiate_norm(p, n, out);
    stack[0] = box(std::move(out));
    stack[1] = box(std::move(grad_norm));
  }

  static void norm_grad_out(StableIValue* stack, uint64_t count, uint64_t) {
    const Tensors out = unbox_list(stack[0]);
    NormGradArguments n(stack + 1, count - 1);
    NormGradParams p{};
    static_cast<RotateParams&>(p) = check_arguments(n.a);
    check_norm_grad(n.a, p, n.input, n.inv_rms);
    check_written(n.a, out, "out");
    check_apart(n.input, out, "input");
    check_apart(n.inv_rms, out, "inv_rms");
    n.wanted |= (1 << kMaxTensors) - 1;
    stack[0] = box(differentiate_norm(p, n, out));
  }

  static void empty_like(StableIValue* stack, uint64_t, uint64_t) {
    bool unmapped = false;
    stack[0] = box(Device::empty_like(unbox_tensor(stack[0]), &unmapped));
  }

  static void table_grad(StableIValue* stack, uint64_t count, uint64_t) {
    const Tensors grad = unbox_list(stack[0]);
    const Arguments a = unbox(stack + 1, count - 1);
    TableGradParams p{};
    static_cast<Rotation&>(p) = check_arguments(a);
    check_table_grad(a, grad);
    Tensor cos = rope::empty_like(a.cos), sin = rope::empty_like(a.cos);
    set_table_grad(a, cos, sin, &p);
    for (size_t i = 0; i < grad.size(); ++i) {
      if (!grad[i].empty()) p.x[p.num_tensors++] = grad_tensor(a, a.x[i], grad[i]);
    }
    if (!cos.empty()) Device::table_grad(p, a.x[0]);
    stack[0] = box(std::move(cos));
    stack[1] = box(std::move(sin));
  }

  static void table_rows(StableIValue* stack, uint64_t count, uint64_t) {
    const Arguments a = unbox(stack, count);
    Tokens p = check_arguments(a);
    if (a.from_frequencies()) bad_value("inv_freq", "be None when table rows are requested", "frequencies");
    const bool checked = p.batch;  // an empty batch skips the checks of positions
    const bool per_batch =
        a.offset_per_batch() || (a.positions && a.positions->dim() == 2 && a.positions->size(0) != 1);
    if (!per_batch) p.batch = 1;
    Tensor rows = new_empty(a.cos, {p.batch, p.seqlen}, aoti_torch_dtype_int64());
    if (!rows.empty()) Device::table_rows(p, static_cast<int64_t*>(rows.mutable_data_ptr()), checked, a.x[0]);
    stack[0] = box(std::move(rows));
  }

  static void cos_sin(StableIValue* stack, uint64_t count, uint64_t) {
    const Arguments a = unbox(stack, count);
    check_frequencies_given(a);
    const RotateParams checked = check_arguments(a);
    CosSinParams p{};
    static_cast<Tokens&>(p) = checked;
    p.dtype = checked.table_dtype;
    p.heads = a.cos.size(1);
    p.pairs = checked.pairs;
    p.frequencies = checked.frequencies;
    const int64_t rank = a.positions ? a.positions->dim() : 1;
    if (!a.offset_per_batch() && (rank == 1 || a.positions->size(rank - 2) == 1)) p.batch = 1;
    const auto result = [&](std::initializer_list<int64_t> sizes, void** data) {
      Tensor t = new_empty(a.cos, sizes, a.cos.dtype());
      *data = t.mutable_data_ptr();
      return t;
    };
    Tensor cos = result({p.batch, p.seqlen, p.heads, p.pairs}, &p.cos_out);
    Tensor sin = result({p.batch, p.seqlen, p.heads, p.pairs}, &p.sin_out);
    Tensor positions = result({p.frequencies.axes, p.batch, p.seqlen}, &p.positions_out);
    if (!positions.empty()) Device::cos_sin(p, a.x[0]);
    stack[0] = box(std::move(cos));
    stack[1] = box(std::move(sin));
    stack[2] = box(std::move(positions));
  }

  static void revolutions(StableIValue* stack, uint64_t, uint64_t) {
    const Tensor inv_freq = unbox_tensor(stack[0]);
    RevolutionsParams p = check_inv_freq(inv_freq, torch::stable::detail::to<bool>(stack[1]));
    const int32_t dtype = p.arithmetic == DType::kFloat64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
    Tensor high = new_empty(inv_freq, {p.axes, p.heads, p.pairs}, dtype);
    Tensor low = new_empty(inv_freq, {p.axes, p.heads, p.pairs}, dtype);
    p.high = high.mutable_data_ptr();
    p.low = low.mutable_data_ptr();
    if (!high.empty()) Device::revolutions(p, inv_freq);
    stack[0] = box(std::move(high));
    stack[1] = box(std::move(low));
  }

  // inv_rms: receives 1 / rms of each head of the normalized tensors; null: not requested.
  static void rotate_tensors(RotateParams& p, const Arguments& a, const Tensors& out,
                             const Tensors* inv_rms = nullptr) {
    for (size_t i = 0; i < out.size(); ++i) {
      if (out[i].empty()) continue;
      if (!a.norm.empty()) p.norm[p.num_tensors] = norm_of(a, i, inv_rms ? (*inv_rms)[i].mutable_data_ptr() : nullptr);
      p.x[p.num_tensors++] = rotated_tensor(a, a.x[i], out[i]);
    }
    if (p.num_tensors) Device::rotate(p, a.x[0]);
  }

  // Writes the requested gradients of `input` to `out`, and returns the gradients of the weights.
  static Tensors differentiate_norm(NormGradParams& p, const NormGradArguments& n, const Tensors& out) {
    Tensors grad_norm, block_sums;
    for (size_t i = 0; i < n.input.size(); ++i) {
      const Tensor& x = n.input[i];
      const bool wants_x = n.wanted >> i & 1, wants_norm = n.wanted >> (kMaxTensors + i) & 1 && n.a.norm[i];
      const int64_t blocks = quotient_up(p.batch * p.seqlen, kBlockTokens);
      grad_norm.push_back(new_arithmetic(p, x, {wants_norm ? x.size(-1) : 0}));
      block_sums.push_back(new_arithmetic(p, x, {wants_norm ? blocks : 0, x.size(-1)}));
      if (!wants_x && !wants_norm) continue;
      if (x.empty()) {
        torch::stable::Tensor zeros = grad_norm[i].stable();
        torch::stable::zero_(zeros);
        continue;
      }
      const int t = p.num_tensors++;
      p.x[t] = rotated_tensor(n.a, n.a.x[i], wants_x ? out[i] : x);
      if (!wants_x) p.x[t].out = nullptr;
      p.norm[t] = norm_of(n.a, i, n.a.norm[i] ? const_cast<void*>(n.inv_rms[i].const_data_ptr()) : nullptr);
      p.of_norm[t] = {x.const_data_ptr(), strides_in(layout_of(n.a), x),
                      wants_norm ? block_sums[i].mutable_data_ptr() : nullptr,
                      wants_norm ? grad_norm[i].mutable_data_ptr() : nullptr};
    }
    if (p.num_tensors) Device::norm_grad(p, n.input[0]);
    return grad_norm;
  }

  template <class Library>
  static void add_to(Library& library) {
    for (const char* name : {"rotate", "rotate.unrecorded", "rotate.plain"}) library.impl(name, rotate);
    for (const char* name : {"rotate_", "rotate_.unrecorded", "rotate_.plain"}) library.impl(name, rotate_);
    for (const char* name : {"rotate_out", "rotate_out.unrecorded", "rotate_out.plain"}) library.impl(name, rotate_out);
    library.impl("check", check);
    library.impl("check_in_place", check_in_place);
    for (const char* name : {"nothing", "nothing.unrecorded", "nothing.plain"}) library.impl(name, nothing);
    library.impl("norm_rotate", norm_rotate);
    library.impl("norm_grad", norm_grad);
    library.impl("norm_grad_out", norm_grad_out);
    library.impl("empty_like", empty_like);
    library.impl("table_grad", table_grad);
    library.impl("table_rows", table_rows);
    library.impl("cos_sin", cos_sin);
    for (const char* name : {"revolutions", "revolutions.unrecorded"}) library.impl(name, revolutions);
  }
};

}  // namespace rope
