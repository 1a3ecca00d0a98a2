// The CUDA kernels on a CPU: one thread of the grid after another, on host memory. Tests run them in place of the CPU
// kernels (rope_ext_use_cpu_kernels), and again with this file compiled for sanitizers.
#include "cpu/isa.h"
#include "cuda/revolutions.cuh"
#include "cuda/rotate.cuh"
#include "cuda/table_grad.cuh"

namespace rope::cuda {
namespace {

int multiprocessors = 132;
uint64_t instances = 0;
bool backwards = false;  // last thread first: shows whether a thread relies on an earlier one

template <class Function>
void for_each(int64_t count, const Function& function) {
  for (int64_t i = 0; i < count; ++i) function(backwards ? count - 1 - i : i);
}

void rotate(const RotateParams& p, int) {
  const Plan plan = plan_of(p, multiprocessors);
  if (plan.rounds == 0) return;
  run_instance(p, plan, [&](auto instance) {
    using I = decltype(instance);
    const int width = I::kWidth == 1 ? 2 : I::kWidth * sizeof(typename I::Element) == 16 ? 0 : 1;
    instances |= uint64_t{1} << (static_cast<int>(p.dtype) * 9 + width * 3 + static_cast<int>(I::kSource));
    const auto arguments = arguments_of<IntOf<I::kWidth>>(p, plan);
    const int64_t threads_of_round = plan.blocks * plan.threads;
    for_each(plan.rounds * threads_of_round, [&](int64_t i) {
      rotate_thread<typename I::Element, I::kWidth, I::kSource>(arguments, static_cast<int>(i / threads_of_round),
                                                                static_cast<IntOf<I::kWidth>>(i % threads_of_round));
    });
  });
}

void table_grad(const TableGradParams& p, int) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    for_each(table_grad_threads(p), [&](int64_t i) { table_grad_thread<typename decltype(tag)::type>(p, i); });
  });
}

void cos_sin(const CosSinParams& p, int) {
  dispatch_arithmetic(p.dtype, [&](auto tag) {
    for_each(cos_sin_threads(p), [&](int64_t i) { cos_sin_thread<typename decltype(tag)::type>(p, i); });
  });
}

constexpr cpu::Kernels kEmulated = {"cuda", rotate, table_grad, cos_sin, nullptr};

}  // namespace
}  // namespace rope::cuda

extern "C" {

// A cpu::Kernels that emulates a GPU with this number of multiprocessors: the fewer, the more heads a thread rotates.
// Forgets which instances have run.
__attribute__((visibility("default"))) const void* rope_ext_emulated_cuda(int multiprocessors, bool backwards) {
  rope::cuda::multiprocessors = multiprocessors;
  rope::cuda::backwards = backwards;
  rope::cuda::instances = 0;
  return &rope::cuda::kEmulated;
}

// Runs the kernel of the op `revolutions`.
__attribute__((visibility("default"))) void rope_ext_emulated_revolutions(const rope::RevolutionsParams* p) {
  rope::dispatch_revolutions(*p, [&](auto t, auto a) {
    rope::cuda::for_each(rope::cuda::revolutions_threads(*p), [&](int64_t i) {
      rope::cuda::revolutions_thread<typename decltype(t)::type, typename decltype(a)::type>(*p, i);
    });
  });
}

// A bit for each instance of rotate_thread that has run: 9 per element type, for accesses of 16 bytes, of 4, and of one
// element, each with entries per pair, per channel and from positions.
__attribute__((visibility("default"))) uint64_t rope_ext_emulated_instances() { return rope::cuda::instances; }
}
