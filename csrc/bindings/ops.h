// The ops as the dispatcher calls them, once for all devices. A Device has
//   static Tensor empty_like(const Tensor& x, bool* fresh);               the memory of a result (see output.h)
//   static void rotate(const Params&, const Tensor& x);                   the kernels, on the device of x
//   static void table_grad(const Params&, const Tensor& x);
//   static void table_rows(const Params&, int64_t* rows, const Tensor& x);
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "bindings/check.h"

namespace rope {

constexpr int kNumArguments = 10;

// Reads the arguments of schema.cpp off the dispatcher's stack, and owns them.
inline Arguments unbox(StableIValue* stack) {
  using torch::stable::detail::to;
  return {to<Tensors>(stack[0]),        to<Tensor>(stack[1]),         to<Tensor>(stack[2]),
          to<OptionalTensor>(stack[3]), to<OptionalTensor>(stack[4]), to<OptionalTensor>(stack[5]),
          to<int64_t>(stack[6]),        to<int64_t>(stack[7]),        to<std::optional<int64_t>>(stack[8]),
          to<int64_t>(stack[9])};
}

template <class T>
StableIValue box(const T& value) {
  return torch::stable::detail::from<T>(value);
}

inline Params with_tensors(Params p, const Arguments& a, const Tensors& out) {
  for (size_t i = 0; i < out.size(); ++i) p.x[i] = rotated_tensor(a, a.x[i], out[i]);
  p.num_tensors = static_cast<int32_t>(out.size());
  return p;
}

template <class Device>
struct Ops {
  static void rotate(StableIValue* stack, uint64_t, uint64_t) {
    const Arguments a = unbox(stack);
    Params p = check_arguments(a);
    Tensors out;
    for (const Tensor& x : a.x) out.push_back(Device::empty_like(x, &p.fresh));
    Device::rotate(with_tensors(p, a, out), a.x[0]);
    stack[0] = box(out);
  }

  static void rotate_out(StableIValue* stack, uint64_t, uint64_t) {
    const Arguments a = unbox(stack);
    const Tensors out = torch::stable::detail::to<Tensors>(stack[kNumArguments]);
    const Params p = check_arguments(a);
    check_written(a, out, "out");
    Device::rotate(with_tensors(p, a, out), a.x[0]);
  }

  static void rotate_(StableIValue* stack, uint64_t, uint64_t) {
    const Arguments a = unbox(stack);
    const Params p = check_arguments(a);
    check_written(a, a.x, "x");
    Device::rotate(with_tensors(p, a, a.x), a.x[0]);
  }

  static void check_in_place(StableIValue* stack, uint64_t, uint64_t) {
    const Arguments a = unbox(stack);
    check_arguments(a);
    check_written(a, a.x, "x");
  }

  static void table_grad(StableIValue* stack, uint64_t, uint64_t) {
    const Arguments a = unbox(stack);
    const Tensors grad = torch::stable::detail::to<Tensors>(stack[kNumArguments]);
    Params p = check_arguments(a);
    check_table_grad(a, grad);
    const Tensor cos = torch::stable::empty_like(a.cos), sin = torch::stable::empty_like(a.cos);
    p.cos = table_of(a, p, cos);
    p.sin = table_of(a, p, sin);
    Device::table_grad(with_tensors(p, a, grad), a.x[0]);
    stack[0] = box(cos);
    stack[1] = box(sin);
  }

  static void table_rows(StableIValue* stack, uint64_t, uint64_t) {
    const Arguments a = unbox(stack);
    Params p = check_arguments(a);
    const bool per_batch = a.offsets || (a.positions && a.positions->dim() == 2 && a.positions->size(0) != 1);
    if (!per_batch) p.batch = 1;
    const Tensor rows = torch::stable::new_empty(a.cos, {p.batch, p.seqlen}, torch::headeronly::ScalarType::Long);
    Device::table_rows(p, static_cast<int64_t*>(rows.mutable_data_ptr()), a.x[0]);
    stack[0] = box(rows);
  }

  template <class Library>
  static void add_to(Library& library) {
    library.impl("rotate", rotate);
    library.impl("rotate_", rotate_);
    library.impl("rotate_out", rotate_out);
    library.impl("check_in_place", check_in_place);
    library.impl("table_grad", table_grad);
    library.impl("table_rows", table_rows);
  }
};

}  // namespace rope
