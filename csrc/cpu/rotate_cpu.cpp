// The CPU kernels, compiled once per instruction set, which ROPE_ISA names. Everything but the table at the end has
// internal linkage, so that the linker cannot mix the code of instruction sets.
#include <algorithm>

#include "core/dispatch.h"
#include "core/integer.h"
#include "core/norm.h"
#include "cpu/angles.h"
#include "cpu/isa.h"
#include "cpu/norm_grad.h"
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
    const PerThread<Arithmetic<T>> factors(room_for_factors<Arithmetic<T>>(p), threads);
    with_access(plan.access, [&](auto access) {
      const auto rotate = [&](auto non_temporal) {
        for_each_token(p.batch, p.seqlen, threads, [&](int64_t batch, int64_t token, int64_t thread) {
          rotate_token<access, non_temporal>(p, tensors, batch, token, factors.of(thread));
        });
      };
      if constexpr (access != Access::kAny) {
        if (plan.non_temporal) return rotate(std::true_type{});
      }
      rotate(std::false_type{});
    });
  });
}

// The `rows` of keep_rotated (norm_grad.h).
template <class T>
Rows<T, Arithmetic<T>> kept_rows_of(const RotateParams& p, const Plan& plan, int t) {
  const Rows<T> rows = rows_of<T>(p, plan, t);
  Rows<T, Arithmetic<T>> kept = {rows.in, nullptr, rows.in_stride, 0, rows.count, rows.from, p.out_pairing};
  kept.prefetch = rows.prefetch;
  kept.in_run_order = plan.access != Access::kAny && p.rotary_offset % kStep<T> == 0 && p.pairs % kStep<T> == 0;
  return kept;
}

void norm_grad(const NormGradParams& p, int num_threads) {
  RotateParams others = p;  // tensors that are only rotated
  others.num_tensors = 0;
  int64_t numbers = 0;
  for (int t = 0; t < p.num_tensors; ++t) {
    const RotatedTensor& x = p.x[t];
    if (!p.norm[t].weight) {
      others.x[others.num_tensors] = x;
      others.norm[others.num_tensors++] = {};
    } else if (p.dtype == DType::kFloat64) {
      numbers = std::max(numbers, NormGradMemory<double>(nullptr, x.head_dim, x.heads).size());
    } else {
      numbers = std::max(numbers, NormGradMemory<float>(nullptr, x.head_dim, x.heads).size());
    }
  }
  if (others.num_tensors) rotate(others, num_threads);
  if (!numbers) return;

  const Plan plan = plan_of(p);
  const int64_t threads = std::min<int64_t>(num_threads, plan.threads);
  const int64_t blocks = quotient_up(p.batch * p.seqlen, kBlockTokens);
  dispatch_dtype(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = Arithmetic<T>;
    const PerThread<A> memory(numbers, threads);
    with_access(plan.access, [&](auto access) {
      const auto differentiate = [&](auto non_temporal) {
        for_each_token(blocks, 1, threads, [&](int64_t block, int64_t, int64_t thread) {
          for (int t = 0; t < p.num_tensors; ++t) {
            if (!p.norm[t].weight) continue;
            norm_grad_block<access, non_temporal>(p, t, kept_rows_of<T>(p, plan, t), plan.prefetch_input[t], block,
                                                  memory.of(thread));
          }
        });
      };
      if constexpr (access != Access::kAny) {
        if (plan.non_temporal) return differentiate(std::true_type{});
      }
      differentiate(std::false_type{});
    });
    for (int t = 0; t < p.num_tensors; ++t) {
      if (p.of_norm[t].block_sums) add_blocks<A>(p.of_norm[t], blocks, p.x[t].head_dim);
    }
  });
}

void table_grad(const TableGradParams& p, int num_threads) {
  const Plan plan = plan_of(p);
  const int64_t threads = std::min<int64_t>(num_threads, plan.threads);
  dispatch_dtype(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_access(plan.access, [&](auto access) {
      for_each_token(p.table_batches, p.seqlen, threads,
                     [&](int64_t batch, int64_t token, int64_t) { table_grad_token<access, T>(p, batch, token); });
    });
  });
}

void cos_sin(const CosSinParams& p, int num_threads) {
  const int64_t threads = std::min<int64_t>(num_threads, threads_for(p));
  dispatch_arithmetic(p.dtype, [&](auto tag) {
    using A = typename decltype(tag)::type;
    for_each_token(p.batch, p.seqlen, threads,
                   [&](int64_t batch, int64_t token, int64_t) { cos_sin_token<A>(p, batch, token); });
  });
}

}  // namespace

#define ROPE_CONCAT_(a, b) a##b
#define ROPE_CONCAT(a, b) ROPE_CONCAT_(a, b)
#define ROPE_STRING_(a) #a
#define ROPE_STRING(a) ROPE_STRING_(a)
extern const Kernels ROPE_CONCAT(kernels_, ROPE_ISA);
const Kernels ROPE_CONCAT(kernels_, ROPE_ISA) = {ROPE_STRING(ROPE_ISA), rotate, table_grad, cos_sin, norm_grad};

}  // namespace rope::cpu
