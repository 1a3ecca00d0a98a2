// Computes the arguments and plans of norm_plan.h.
#include "cuda/norm_plan.h"

#include <algorithm>

#include "core/integer.h"
#include "cuda/width.h"

namespace rope::cuda {

namespace {

// Whether the unit of a lane, given the pairing of the units, is the two accesses that the lane sums.
bool sums_units(const RotateParams& p, int t, const UnitPairing& pairing, int64_t width) {
  const int64_t head_dim = p.x[t].head_dim, lanes = sum_lanes(head_dim, width);
  return 2 * p.pairs == head_dim && 2 * lanes * width == head_dim && pairing.step == 1 && pairing.partner == lanes;
}

}  // namespace

NormArguments norm_arguments_of(const RotateParams& p, const Plan& plan) {
  NormArguments a{};
  static_cast<RotateArguments<int>&>(a) = arguments_of<int>(p, plan);
  a.eps = p.eps;
  a.eps_single = static_cast<float>(p.eps);
  a.round_weighted = p.round_weighted;
  for (int t = 0; t < p.num_tensors; ++t) {
    const int64_t head_dim = p.x[t].head_dim;
    NormSection& to = a.norms[t];
    to.weight = p.norm[t].weight;
    to.weight_like_x = bytes_of(p.norm[t].weight_dtype) == 2;
    to.round_unweighted = p.norm[t].round_unweighted;
    to.lanes = static_cast<int>(sum_lanes(head_dim, plan.width));
    to.sums_units = sums_units(p, t, a.in, plan.width);
    to.head_dim = static_cast<int>(head_dim);
    to.reciprocal = (head_dim & (head_dim - 1)) == 0 ? 1.0f / static_cast<float>(head_dim) : 0.0f;
    to.accesses = to.weight || to.sums_units ? static_cast<int>(head_dim / plan.width) : 0;
    to.units = static_cast<int>(units(p, t, plan.width));
    to.steps = static_cast<int>(quotient_up(p.x[t].heads, a.sections[t].head_step.by));
    to.inv_rms = p.norm[t].inv_rms;
  }
  return a;
}

// ---- derivatives ----

namespace {

bool input_fits(const NormGradParams& p, int64_t width) {
  for (int t = 0; t < p.num_tensors; ++t) {
    const Strides& s = p.of_norm[t].x_stride;
    if (!rows_aligned(p, p.of_norm[t].x, s, width) || reach(p, p.x[t], s) / width >= int64_t{1} << 31) return false;
  }
  return true;
}

}  // namespace

NormGradPlan norm_grad_plan_of(const NormGradParams& p, int multiprocessors) {
  NormGradPlan to{plan_of(p, multiprocessors), quotient_up(p.batch * p.seqlen, kBlockTokens), 1, 0, 0};
  if (to.plan.width > 1 && !input_fits(p, to.plan.width)) to.plan.width = 1;
  int64_t most_heads = 0, lanes = 0;
  bool weights = false;
  for (int t = 0; t < p.num_tensors; ++t) {
    most_heads = std::max(most_heads, p.x[t].heads);
    lanes = std::max(lanes, sum_lanes(p.x[t].head_dim, to.plan.width));
    weights = weights || p.of_norm[t].block_sums;
  }
  if (to.plan.width == 1) {
    to.threads = kWarps * kSumLanes;
  } else {
    to.threads = static_cast<int>(std::min<int64_t>(lanes * kBlockTokens, kNormGradThreads));
    to.shared = static_cast<int>(kBlockTokens * 2 * lanes * to.plan.width * (p.dtype == DType::kFloat64 ? 8 : 4));
  }
  // Slices the heads to get four blocks per multiprocessor. The gradient of a weight rules this out: it adds the heads
  // one after another.
  if (!weights) {
    const int64_t wanted = quotient_up(4 * multiprocessors, std::max<int64_t>(to.blocks * p.num_tensors, 1));
    to.slices = std::clamp<int64_t>(wanted, 1, std::min(most_heads, kMostRounds));
  }
  return to;
}

NormGradArguments norm_grad_arguments_of(const NormGradParams& p, const NormGradPlan& plan) {
  const int64_t width = plan.plan.width;
  NormGradArguments a{};
  static_cast<NormArguments&>(a) = norm_arguments_of(p, plan.plan);
  int64_t lanes = 0;
  for (int t = 0; t < p.num_tensors; ++t) {
    const NormGradTensor& of_norm = p.of_norm[t];
    const Strides& s = of_norm.x_stride;
    a.grads[t] = {
        of_norm.x,
        {static_cast<int>(s.batch / width), static_cast<int>(s.token / width), static_cast<int>(s.head / width), 1},
        of_norm.block_sums,
        p.x[t].out != nullptr,
        static_cast<int>(quotient_up(p.x[t].heads, plan.slices))};
    a.norms[t].sums_units = sums_units(p, t, a.out, width);
    lanes = std::max(lanes, sum_lanes(p.x[t].head_dim, width));
  }
  a.lanes = static_cast<int>(lanes);
  a.groups = plan.threads / a.lanes;
  a.row = static_cast<int>(2 * lanes * width);
  a.rows_per_head = p.table_heads != 1;
  return a;
}

RotateParams without_norm(NormGradParams* p) {
  RotateParams others = *p;
  others.num_tensors = 0;
  int kept = 0;
  for (int t = 0; t < p->num_tensors; ++t) {
    if (!p->norm[t].weight) {
      others.x[others.num_tensors] = p->x[t];
      others.norm[others.num_tensors++] = {};
      continue;
    }
    p->x[kept] = p->x[t];
    p->norm[kept] = p->norm[t];
    p->of_norm[kept++] = p->of_norm[t];
  }
  p->num_tensors = kept;
  return others;
}

BlockSums block_sums_of(const NormGradParams& p) {
  BlockSums s{};
  s.blocks = quotient_up(p.batch * p.seqlen, kBlockTokens);
  for (s.row_blocks = 8; s.row_blocks * kSumRows < s.blocks;) s.row_blocks *= 2;
  for (int t = 0; t < p.num_tensors; ++t) {
    if (!p.of_norm[t].block_sums) continue;
    s.sums[s.num_tensors] = p.of_norm[t].block_sums;
    s.to[s.num_tensors] = p.of_norm[t].grad_weight;
    s.head_dim[s.num_tensors++] = p.x[t].head_dim;
  }
  return s;
}

int64_t most_head_dim(const BlockSums& s) { return *std::max_element(s.head_dim, s.head_dim + kMaxTensors); }

// ---- element by element ----

int64_t norm_heads(const RotateParams& p) {
  int64_t heads = 0;
  for (int t = 0; t < p.num_tensors; ++t) heads += p.batch * p.seqlen * p.x[t].heads;
  return heads;
}

int64_t norm_blocks(const RotateParams& p) { return quotient_up(norm_heads(p), kWarps); }

}  // namespace rope::cuda
