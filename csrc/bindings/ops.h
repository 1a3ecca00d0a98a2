// The ops as the dispatcher calls them, once for all devices. A Device has
//   static Tensor empty_like(const Tensor& x, bool* fresh);               the memory of a result (see output.h)
//   static void rotate(const Params&, const Tensor& x);                   the kernels, on the device of x
//   static void table_grad(const Params&, const Tensor& x);
//   static void table_rows(const Params&, int64_t* rows, bool checked, const Tensor& x);   checked: none is outside
//   static void cos_sin(const Params&, const Tensor& x);
#pragma once

#include <torch/csrc/stable/ops.h>

#include "bindings/output.h"
#include "bindings/stack.h"

namespace rope {

// Skips empty tensors: their strides and addresses are arbitrary.
inline const Params& with_tensors(Params& p, const Arguments& a, const Tensors& out) {
  for (size_t i = 0; i < out.size(); ++i) {
    if (!out[i].empty()) p.x[p.num_tensors++] = rotated_tensor(a, a.x[i], out[i]);
  }
  return p;
}

template <class Device>
struct Ops {
  static void rotate(StableIValue* stack, uint64_t, uint64_t) {
    const Arguments a = unbox(stack);
    Params p = check_arguments(a);
    Tensors out;
    out.reserve(a.x.size());
    for (const Tensor& x : a.x) out.push_back(Device::empty_like(x, &p.fresh));
    rotate_tensors(p, a, out);
    stack[0] = box(std::move(out));
  }

  static void rotate_out(StableIValue* stack, uint64_t, uint64_t) {
    const Tensors out = unbox_list(stack[0]);
    const Arguments a = unbox(stack + 1);
    Params p = check_arguments(a);
    check_written(a, out, "out");
    rotate_tensors(p, a, out);
  }

  static void rotate_(StableIValue* stack, uint64_t, uint64_t) {
    const Arguments a = unbox(stack);
    Params p = check_arguments(a);
    check_written(a, a.x, "x");
    rotate_tensors(p, a, a.x);
  }

  static void check_in_place(StableIValue* stack, uint64_t, uint64_t) {
    const Arguments a = unbox(stack);
    check_arguments(a);
    check_written(a, a.x, "x");
  }

  static void table_grad(StableIValue* stack, uint64_t, uint64_t) {
    const Tensors grad = unbox_list(stack[0]);
    const Arguments a = unbox(stack + 1);
    Params p = check_arguments(a);
    check_table_grad(a, grad);
    Tensor cos = empty_like(a.cos), sin = empty_like(a.cos);
    set_tables(a, cos, sin, &p);
    if (!cos.empty()) Device::table_grad(with_tensors(p, a, grad), a.x[0]);
    stack[0] = box(std::move(cos));
    stack[1] = box(std::move(sin));
  }

  static void table_rows(StableIValue* stack, uint64_t, uint64_t) {
    const Arguments a = unbox(stack);
    Params p = check_arguments(a);
    if (a.from_frequencies()) bad_value("inv_freq", "be None where rows of a table are asked for", "frequencies");
    const bool checked = p.batch;
    const bool per_batch =
        a.offset_per_batch() || (a.positions && a.positions->dim() == 2 && a.positions->size(0) != 1);
    if (!per_batch) p.batch = 1;
    Tensor rows = new_empty(a.cos, {p.batch, p.seqlen}, ScalarType::Long);
    if (!rows.empty()) Device::table_rows(p, static_cast<int64_t*>(rows.mutable_data_ptr()), checked, a.x[0]);
    stack[0] = box(std::move(rows));
  }

  static void cos_sin(StableIValue* stack, uint64_t, uint64_t) {
    const Arguments a = unbox(stack);
    check_cos_sin(a);
    Params p = check_arguments(a);
    const int64_t rank = a.positions ? a.positions->dim() : 1;
    if (!a.offset_per_batch() && (rank == 1 || a.positions->size(rank - 2) == 1)) p.batch = 1;
    p.negate_sin = false;
    const int64_t heads = a.cos.size(1);
    const auto result = [&](int i, std::initializer_list<int64_t> sizes) {
      Tensor t = new_empty(a.cos, sizes, a.cos.scalar_type());
      p.x[i].out = t.mutable_data_ptr();
      p.x[i].heads = heads;
      return t;
    };
    Tensor cos = result(0, {p.batch, p.seqlen, heads, p.pairs}), sin = result(1, {p.batch, p.seqlen, heads, p.pairs});
    Tensor positions = result(2, {p.axes, p.batch, p.seqlen});
    if (!positions.empty()) Device::cos_sin(p, a.x[0]);
    stack[0] = box(std::move(cos));
    stack[1] = box(std::move(sin));
    stack[2] = box(std::move(positions));
  }

  static void rotate_tensors(Params& p, const Arguments& a, const Tensors& out) {
    if (with_tensors(p, a, out).num_tensors) Device::rotate(p, a.x[0]);
  }

  template <class Library>
  static void add_to(Library& library) {
    for (const char* name : {"rotate", "rotate.unrecorded"}) library.impl(name, rotate);
    for (const char* name : {"rotate_", "rotate_.unrecorded"}) library.impl(name, rotate_);
    for (const char* name : {"rotate_out", "rotate_out.unrecorded"}) library.impl(name, rotate_out);
    library.impl("check_in_place", check_in_place);
    library.impl("table_grad", table_grad);
    library.impl("table_rows", table_rows);
    library.impl("cos_sin", cos_sin);
  }
};

}  // namespace rope
