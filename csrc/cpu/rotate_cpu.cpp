// The CPU kernels. Compiled once per instruction set, which ROPE_ISA names. Everything but the table at the end has
// internal linkage, so that no other instruction set can be linked to these copies.
#include <algorithm>

#include "core/dispatch.h"
#include "cpu/angles.h"
#include "cpu/isa.h"
#include "cpu/plan.h"
#include "cpu/rotate.h"
#include "cpu/table_grad.h"
#include "cpu/threads.h"

namespace rope::cpu {
namespace {

void rotate(const RotateParams& p, int num_threads) {
  const Plan plan = plan_of(p);
  const int64_t threads = std::min<int64_t>(num_threads, plan.threads);
  dispatch_dtype(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    Rows<T> tensors[kMaxTensors];
    for (int t = 0; t < p.num_tensors; ++t) tensors[t] = rows_of<T>(p, plan, t);
    with_access(plan.access, [&](auto access) {
      const auto rotate = [&](auto non_temporal) {
        for_each_token(p.batch, p.seqlen, threads, [&](int64_t batch, int64_t token) {
          rotate_token<access, non_temporal>(p, tensors, batch, token);
        });
      };
      if constexpr (access != Access::kAny) {
        if (plan.non_temporal) return rotate(std::true_type{});
      }
      rotate(std::false_type{});
    });
  });
}

void table_grad(const TableGradParams& p, int num_threads) {
  const Plan plan = plan_of(p);
  const int64_t threads = std::min<int64_t>(num_threads, plan.threads);
  dispatch_dtype(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_access(plan.access, [&](auto access) {
      for_each_token(p.table_batches, p.seqlen, threads,
                     [&](int64_t batch, int64_t token) { table_grad_token<access, T>(p, batch, token); });
    });
  });
}

void cos_sin(const CosSinParams& p, int num_threads) {
  const int64_t threads = std::min<int64_t>(num_threads, threads_for(p));
  dispatch_arithmetic(p.dtype, [&](auto tag) {
    using A = typename decltype(tag)::type;
    for_each_token(p.batch, p.seqlen, threads,
                   [&](int64_t batch, int64_t token) { cos_sin_token<A>(p, batch, token); });
  });
}

}  // namespace

#define ROPE_CONCAT_(a, b) a##b
#define ROPE_CONCAT(a, b) ROPE_CONCAT_(a, b)
#define ROPE_STRING_(a) #a
#define ROPE_STRING(a) ROPE_STRING_(a)
extern const Kernels ROPE_CONCAT(kernels_, ROPE_ISA);
const Kernels ROPE_CONCAT(kernels_, ROPE_ISA) = {ROPE_STRING(ROPE_ISA), rotate, table_grad, cos_sin};

}  // namespace rope::cpu
