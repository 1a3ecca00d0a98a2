// The ops as the dispatcher calls them, once for all devices. A Device has
//   static Tensor empty_like(const Tensor& x, bool* unmapped);              a result (output.h)
//   static void rotate(const RotateParams&, const Tensor& x);               the kernels, on the device of x
//   static void table_grad(const TableGradParams&, const Tensor& x);
//   static void table_rows(const Tokens&, int64_t* rows, bool checked, const Tensor& x);   checked: by check_lookup
//   static void cos_sin(const CosSinParams&, const Tensor& x);
//   static void revolutions(const RevolutionsParams&, const Tensor& inv_freq);
#pragma once

#include <torch/csrc/stable/ops.h>

#include "bindings/check.h"
#include "bindings/output.h"
#include "bindings/stack.h"
#include "bindings/view.h"

namespace rope {

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

  static void nothing(StableIValue* stack, uint64_t count, uint64_t) { unbox(stack, count); }

  static void table_grad(StableIValue* stack, uint64_t count, uint64_t) {
    const Tensors grad = unbox_list(stack[0]);
    const Arguments a = unbox(stack + 1, count - 1);
    TableGradParams p{};
    static_cast<Rotation&>(p) = check_arguments(a);
    check_table_grad(a, grad);
    Tensor cos = empty_like(a.cos), sin = empty_like(a.cos);
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
    if (a.from_frequencies()) bad_value("inv_freq", "be None where rows of a table are asked for", "frequencies");
    const bool checked = p.batch;  // with an empty batch no position is checked
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

  static void rotate_tensors(RotateParams& p, const Arguments& a, const Tensors& out) {
    for (size_t i = 0; i < out.size(); ++i) {
      if (!out[i].empty()) p.x[p.num_tensors++] = rotated_tensor(a, a.x[i], out[i]);
    }
    if (p.num_tensors) Device::rotate(p, a.x[0]);
  }

  template <class Library>
  static void add_to(Library& library) {
    for (const char* name : {"rotate", "rotate.unrecorded", "rotate.plain"}) library.impl(name, rotate);
    for (const char* name : {"rotate_", "rotate_.unrecorded", "rotate_.plain"}) library.impl(name, rotate_);
    for (const char* name : {"rotate_out", "rotate_out.unrecorded", "rotate_out.plain"}) library.impl(name, rotate_out);
    library.impl("check_in_place", check_in_place);
    for (const char* name : {"nothing", "nothing.unrecorded", "nothing.plain"}) library.impl(name, nothing);
    library.impl("table_grad", table_grad);
    library.impl("table_rows", table_rows);
    library.impl("cos_sin", cos_sin);
    for (const char* name : {"revolutions", "revolutions.unrecorded"}) library.impl(name, revolutions);
  }
};

}  // namespace rope
