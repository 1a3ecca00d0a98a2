// The CPU kernels. Compiled once per instruction set (ROPE_ISA names it); everything but the table at the end has
// internal linkage, so that no other instruction set can be linked to these copies.
#include "core/dispatch.h"
#include "cpu/angles.h"
#include "cpu/isa.h"
#include "cpu/plan.h"
#include "cpu/rotate.h"
#include "cpu/table_grad.h"
#include "cpu/threads.h"

namespace rope::cpu {
namespace {

// Entries of cos and sin that a thread makes at least.
constexpr int64_t kGrainEntries = 16384;

void rotate(const Params& p, int num_threads) {
  const Plan plan = plan_of(p);
  dispatch_dtype(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_access(plan.access, [&](auto access) {
      constexpr bool kMayBeNonTemporal = access != Access::kAny;
      const auto rotate =
          plan.non_temporal ? rotate_token<access, kMayBeNonTemporal, T> : rotate_token<access, false, T>;
      for_each_token(p, plan, p.batch, num_threads,
                     [&](int64_t batch, int64_t token) { rotate(p, plan, batch, token); });
    });
  });
}

void table_grad(const Params& p, int num_threads) {
  const Plan plan = plan_of(p);
  dispatch_dtype(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_access(plan.access, [&](auto access) {
      for_each_token(p, plan, p.table_batches, num_threads,
                     [&](int64_t batch, int64_t token) { table_grad_token<access, T>(p, batch, token); });
    });
  });
}

void cos_sin(const Params& p, int num_threads) {
  Plan plan{};
  plan.threads = p.batch * p.seqlen * p.x[0].heads * p.pairs / kGrainEntries;
  dispatch_arithmetic(p.dtype, [&](auto tag) {
    using A = typename decltype(tag)::type;
    for_each_token(p, plan, p.batch, num_threads,
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
