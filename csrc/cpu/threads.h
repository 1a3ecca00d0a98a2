// Tokens over threads.
#pragma once

#include <omp.h>

#include "core/params.h"
#include "cpu/plan.h"
#include "cpu/vector.h"

namespace rope::cpu {
namespace {

// Calls function(batch, token) for all tokens of `batch` sequences.
// num_threads(): a bare `omp parallel` ignores torch.set_num_threads() in threads that torch did not start.
template <class Function>
void for_each_token(const Params& p, const Plan& plan, int64_t batch, int num_threads, const Function& function) {
  const int64_t tokens = batch * p.seqlen;
  if (num_threads > plan.threads) num_threads = static_cast<int>(plan.threads);
  if (num_threads > tokens) num_threads = static_cast<int>(tokens);
  const auto share = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) function(i / p.seqlen, i % p.seqlen);
    fence_non_temporal_stores();
  };
  if (num_threads <= 1 || omp_in_parallel()) return share(0, tokens);
#pragma omp parallel num_threads(num_threads)
  {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    share(tokens * thread / threads, tokens * (thread + 1) / threads);
  }
}

}  // namespace
}  // namespace rope::cpu
