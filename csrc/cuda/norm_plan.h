// The arguments and plans of the kernels for calls in which a tensor is normalized. Plain C++, no CUDA.
#pragma once

#include "core/norm.h"
#include "core/params.h"
#include "cuda/plan.h"

namespace rope::cuda {

// The norm of the tensor in the section of the same index.
struct NormSection {
  const void* weight;  // null: the tensor is only rotated
  bool weight_like_x;  // weight has the type of x; else the arithmetic type
  bool round_unweighted;
  // The number of lanes that sum a head: a power of two, at most Section::units. Lane i sums the accesses i and i +
  // lanes.
  int lanes;
  bool sums_units;         // these two accesses are the unit of the lane
  int head_dim, accesses;  // accesses: of a head; those that the lanes sum, 0 if they sum nothing
  float reciprocal;        // 1 / head_dim if head_dim is a power of two; else 0
  int units;               // units of a head; lanes from `units` on have none
  int steps;               // maximum heads of a thread
  void* inv_rms;           // as Norm::inv_rms
};

// The parameters of kernels whose accesses have 16 bytes.
struct NormArguments : RotateArguments<int> {
  NormSection norms[kMaxTensors];
  double eps;
  float eps_single;  // eps, rounded to float
  bool round_weighted;
};

// For a plan with rounds and a width of more than one element.
NormArguments norm_arguments_of(const RotateParams& p, const Plan& plan);

// ---- derivatives ----

// The derivatives of the tensor in the section of the same index.
struct NormGradSection {
  const void* x;                // as NormGradTensor::x
  AccessStrides<int> x_stride;  // in accesses
  void* block_sums;             // as NormGradTensor::block_sums; may be null
  bool writes;                  // the gradient of x is requested
  int slice_heads;              // heads of a slice: all, if the gradient of a weight is requested
};

// The grid counts blocks of kBlockTokens tokens along x, tensors along y and slices of heads along z.
struct NormGradArguments : NormArguments {
  NormGradSection grads[kMaxTensors];
  int lanes, groups;   // lanes of a token, a power of two; tokens that a block processes at a time
  int row;             // numbers per token in shared memory
  bool rows_per_head;  // cos and sin have one row per head
};

struct NormGradPlan {
  Plan plan;               // of the rotation, with the width of the kernel
  int64_t blocks, slices;  // of the grid, along x and z
  int threads, shared;     // threads per block; bytes of dynamic shared memory per block
};

// Maximum threads per block.
constexpr int kNormGradThreads = 256;

// All tensors of the call must be normalized. multiprocessors: their number on the device.
NormGradPlan norm_grad_plan_of(const NormGradParams& p, int multiprocessors);

// For a plan with rounds and a width of more than one element.
NormGradArguments norm_grad_arguments_of(const NormGradParams& p, const NormGradPlan& plan);

// Moves the tensors that are not normalized, and so only rotated, from p to the result.
RotateParams without_norm(NormGradParams* p);

// ---- the sum over blocks of tokens ----

// A thread block has kSumRows rows of kSumChannels threads, one per channel; each row adds `row_blocks` blocks of
// tokens.
constexpr int kSumChannels = 32, kSumRows = 16;

struct BlockSums {
  const void* sums[kMaxTensors];  // NormGradTensor::block_sums, (blocks, head_dim)
  void* to[kMaxTensors];          // NormGradTensor::grad_weight, (head_dim,)
  int64_t head_dim[kMaxTensors];
  int64_t blocks, row_blocks;  // blocks of tokens: of the call, of a row
  int num_tensors;             // whose gradient of the weight is requested
};

BlockSums block_sums_of(const NormGradParams& p);
int64_t most_head_dim(const BlockSums& s);

// ---- element by element ----

// Warps per block.
constexpr int kWarps = 4;

// The heads of a call with one element per access, each of which has a warp, and the thread blocks for them.
int64_t norm_heads(const RotateParams& p);
int64_t norm_blocks(const RotateParams& p);

}  // namespace rope::cuda
