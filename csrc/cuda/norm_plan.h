// The arguments of the kernels for calls in which a tensor is normalised. Plain C++, no CUDA.
#pragma once

#include "core/norm.h"
#include "core/params.h"
#include "cuda/plan.h"

namespace rope::cuda {

// The norm of the tensor of the section of the same index.
struct NormSection {
  const void* weight;  // null: the tensor is only rotated
  bool weight_like_x;  // weight has the type of x, not that of arithmetic
  bool round_unweighted;
  // The lanes that sum a head, each over the accesses `lane` and `lane + lanes`; a power of two, at most those of
  // Section::units. Lanes beyond have no unit.
  int lanes;
  bool sums_units;         // those two accesses are the unit of the lane, and all heads have both
  int head_dim, accesses;  // accesses: those that lanes sum
  float reciprocal;        // of head_dim, where that is a power of two; else 0
  int units;               // of a head
  int steps;               // heads of a thread, rounded up
  void* inv_rms;
};

// 16 bytes in an access.
struct NormArguments : RotateArguments<int> {
  NormSection norms[kMaxTensors];
  double eps;
  float eps_single;  // eps, rounded
  bool round_weighted;
};

// For a plan with rounds and a width of more than one element.
NormArguments norm_arguments_of(const RotateParams& p, const Plan& plan);

// ---- element by element ----

// Warps of a block.
constexpr int kWarps = 4;

// The warps of a call whose elements are accessed one by one, one per head, and their blocks.
int64_t norm_heads(const RotateParams& p);
int64_t norm_blocks(const RotateParams& p);

}  // namespace rope::cuda
