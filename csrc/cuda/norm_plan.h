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
  bool sums_units;         // those two accesses are the unit of the lane
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

// ---- derivatives ----

// The derivatives of the tensor of the section of the same index.
struct NormGradSection {
  const void* x;
  AccessStrides<int> x_stride;
  void* block_sums;
  bool writes;      // the gradient of x
  int slice_heads;  // heads of a slice: all of them, unless no gradient of a weight is wanted
};

// The grid has blocks of kBlockTokens tokens along x, the tensors along y and slices of heads along z.
struct NormGradArguments : NormArguments {
  NormGradSection grads[kMaxTensors];
  int lanes, groups;   // lanes of a token, a power of two; tokens of a block at a time
  int row;             // numbers of a token in shared memory
  bool rows_per_head;  // of cos and sin
};

struct NormGradPlan {
  Plan plan;
  int64_t blocks, slices;
  int threads, shared;  // of a block; bytes of its shared memory
};

// Maximum threads of a block.
constexpr int kNormGradThreads = 256;

// For calls whose tensors are all normalised. multiprocessors: their number on the device.
NormGradPlan norm_grad_plan_of(const NormGradParams& p, int multiprocessors);

// For a plan with rounds and a width of more than one element.
NormGradArguments norm_grad_arguments_of(const NormGradParams& p, const NormGradPlan& plan);

// Moves the tensors that are not normalised, which are only rotated, from p to the result.
RotateParams without_norm(NormGradParams* p);

// ---- the sum over blocks of tokens ----

// A thread block has kSumRows rows of kSumChannels channels; a row adds `row_blocks` blocks of tokens.
constexpr int kSumChannels = 32, kSumRows = 16;

struct BlockSums {
  const void* sums[kMaxTensors];
  void* to[kMaxTensors];
  int64_t head_dim[kMaxTensors];
  int64_t blocks, row_blocks;
  int num_tensors;
};

BlockSums block_sums_of(const NormGradParams& p);
int64_t most_head_dim(const BlockSums& s);

// ---- element by element ----

// Warps of a block.
constexpr int kWarps = 4;

// The warps of a call whose elements are accessed one by one, one per head, and their blocks.
int64_t norm_heads(const RotateParams& p);
int64_t norm_blocks(const RotateParams& p);

}  // namespace rope::cuda
