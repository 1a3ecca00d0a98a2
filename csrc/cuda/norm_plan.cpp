#include "cuda/norm_plan.h"

#include "core/integer.h"
#include "cuda/width.h"

namespace rope::cuda {

NormArguments norm_arguments_of(const RotateParams& p, const Plan& plan) {
  NormArguments a{};
  static_cast<RotateArguments<int>&>(a) = arguments_of<int>(p, plan);
  a.eps = p.eps;
  a.eps_single = static_cast<float>(p.eps);
  a.round_weighted = p.round_weighted;
  for (int t = 0; t < p.num_tensors; ++t) {
    const int64_t head_dim = p.x[t].head_dim, lanes = sum_lanes(head_dim, plan.width);
    const bool all_rotated = 2 * p.pairs == head_dim && 2 * lanes * plan.width == head_dim;
    NormSection& to = a.norms[t];
    to.weight = p.norm[t].weight;
    to.weight_like_x = bytes_of(p.norm[t].weight_dtype) == 2;
    to.round_unweighted = p.norm[t].round_unweighted;
    to.lanes = static_cast<int>(lanes);
    to.sums_units = all_rotated && a.in.step == 1 && a.in.partner == to.lanes;
    to.head_dim = static_cast<int>(head_dim);
    to.reciprocal = (head_dim & (head_dim - 1)) == 0 ? 1.0f / static_cast<float>(head_dim) : 0.0f;
    to.accesses = to.weight || to.sums_units ? static_cast<int>(head_dim / plan.width) : 0;
    to.units = static_cast<int>(units(p, t, plan.width));
    to.steps = static_cast<int>(quotient_up(p.x[t].heads, a.sections[t].head_step.by));
    to.inv_rms = p.norm[t].inv_rms;
  }
  return a;
}

int64_t norm_heads(const RotateParams& p) {
  int64_t heads = 0;
  for (int t = 0; t < p.num_tensors; ++t) heads += p.batch * p.seqlen * p.x[t].heads;
  return heads;
}

int64_t norm_blocks(const RotateParams& p) { return quotient_up(norm_heads(p), kWarps); }

}  // namespace rope::cuda
