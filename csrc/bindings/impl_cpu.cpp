// The ops on CPU tensors.
#include <torch/csrc/stable/ops.h>

#include "bindings/output.h"
#include "bindings/stack.h"
#include "cpu/isa.h"

namespace rope {
namespace {

using Kernel = void (*)(const Params&, int num_threads);

void launch(const Arguments& a, Params* p, const Tensors& out, Kernel kernel) {
  for (size_t i = 0; i < out.size(); ++i) p->x[i] = rotated_tensor(a, a.x[i], out[i]);
  p->num_tensors = static_cast<int32_t>(out.size());
  kernel(*p, static_cast<int>(torch::stable::get_num_threads()));
}

void rotate(StableIValue* stack, uint64_t, uint64_t) {
  const Arguments a = unbox(stack);
  Params p = check_arguments(a);
  Tensors out;
  out.reserve(a.x.size());
  for (const Tensor& x : a.x) out.push_back(empty_like_output(x, &p.fresh));
  launch(a, &p, out, cpu::best_kernels().rotate);
  stack[0] = box(std::move(out));
}

void rotate_out(StableIValue* stack, uint64_t, uint64_t) {
  const Tensors out = unbox_list(stack[0]);
  const Arguments a = unbox(stack + 1);
  Params p = check_arguments(a);
  check_written(a, out, "out");
  launch(a, &p, out, cpu::best_kernels().rotate);
}

void rotate_(StableIValue* stack, uint64_t, uint64_t) {
  const Arguments a = unbox(stack);
  Params p = check_arguments(a);
  check_written(a, a.x, "x");
  launch(a, &p, a.x, cpu::best_kernels().rotate);
}

void table_grad(StableIValue* stack, uint64_t, uint64_t) {
  const Tensors grad = unbox_list(stack[0]);
  const Arguments a = unbox(stack + 1);
  Params p = check_arguments(a);
  check_table_grad(a, grad);
  Tensor cos(torch::stable::empty_like(a.cos.stable())), sin(torch::stable::empty_like(a.cos.stable()));
  p.cos = table_of(a, p, cos);
  p.sin = table_of(a, p, sin);
  launch(a, &p, grad, cpu::best_kernels().table_grad);
  stack[0] = box(std::move(cos));
  stack[1] = box(std::move(sin));
}

void table_rows(StableIValue* stack, uint64_t, uint64_t) {
  const Arguments a = unbox(stack);
  const Params p = check_arguments(a);
  const bool per_batch = a.offsets || (a.positions && a.positions->dim() == 2 && a.positions->size(0) != 1);
  const int64_t batch = per_batch ? p.batch : 1;
  Tensor rows(torch::stable::new_empty(a.cos.stable(), {batch, p.seqlen}, ScalarType::Long));
  int64_t* to = static_cast<int64_t*>(rows.mutable_data_ptr());
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t s = 0; s < p.seqlen; ++s) *to++ = table_row(p.positions, b, s);
  }
  stack[0] = box(std::move(rows));
}

void check_in_place(StableIValue* stack, uint64_t, uint64_t) {
  const Arguments a = unbox(stack);
  check_arguments(a);
  check_written(a, a.x, "x");
}

STABLE_TORCH_LIBRARY_IMPL(rope_ext, CPU, m) {
  for (const char* name : {"rotate", "rotate.unrecorded"}) m.impl(name, rotate);
  for (const char* name : {"rotate_", "rotate_.unrecorded"}) m.impl(name, rotate_);
  for (const char* name : {"rotate_out", "rotate_out.unrecorded"}) m.impl(name, rotate_out);
  m.impl("check_in_place", check_in_place);
  m.impl("table_grad", table_grad);
  m.impl("table_rows", table_rows);
}

}  // namespace
}  // namespace rope

// The name of the instruction set that is used. For ctypes (rope_ext/_library.py).
extern "C" __attribute__((visibility("default"))) const char* rope_ext_cpu_isa() {
  return rope::cpu::best_kernels().isa;
}

// As cpu::use_kernels. For ctypes, in tests.
extern "C" __attribute__((visibility("default"))) void rope_ext_use_cpu_kernels(const void* kernels) {
  rope::cpu::use_kernels(static_cast<const rope::cpu::Kernels*>(kernels));
}
