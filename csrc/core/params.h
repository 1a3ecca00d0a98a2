// The arguments of the kernels: the seam with tensors above it, pointers and strides below.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/positions.h"
#include "core/view.h"

namespace rope {

// Maximum number of tensors in one launch. Every known model has two or three (q, k and sometimes v).
constexpr int kMaxTensors = 8;

// Where cos and sin come from: tables with one entry per pair or one per channel, or frequencies and positions.
enum class Source { kPerPair, kPerChannel, kFrequencies };

// The tokens of a call, and the table row or position of each.
struct Tokens {
  int64_t batch, seqlen;
  Positions positions;
};

// The arguments that rotate and table_grad share.
struct Rotation : Tokens {
  DType dtype;                   // of x
  int64_t rotary_offset, pairs;  // the first rotated channel; pairs per head
  Pairing pairing, out_pairing;  // of x and of the result; equal in place
  Source source;
  DType table_dtype;    // of cos and sin
  int64_t table_heads;  // distinct rows along the heads axis of cos and sin: 1, or the heads of x, possibly 0
  bool negate_sin;      // rotate by the negative angle
};

// The RMSNorm of the heads of one tensor, before they are rotated (core/norm.h). All channels of a head are normalised,
// rotated or not; a token past the last boundary of cu_seqlens is copied.
struct Norm {
  const void* weight;     // (head_dim,); null: the tensor is not normalised, and the rest is ignored
  DType weight_dtype;     // on a CPU: the type of arithmetic, contiguous (cpu/weights.h)
  int64_t weight_stride;  // elements; 0 repeats
  bool round_unweighted;  // x * r is rounded to the dtype of x before it is multiplied by the weight
  // (batch, seqlen, heads), contiguous, of the type of arithmetic: r of each head, 0 where a token is copied. rotate
  // writes it, norm_grad reads it; null: not wanted.
  void* inv_rms;
};

struct RotateParams : Rotation {
  RotatedTensor x[kMaxTensors];
  int32_t num_tensors;
  Norm norm[kMaxTensors];
  double eps;
  bool round_weighted;      // normalised channels, of 16 bits, are rounded before they are rotated
  Table cos, sin;           // for Source::kPerPair and kPerChannel
  Frequencies frequencies;  // for Source::kFrequencies
  bool round_products;      // each product is rounded to dtype, of 16 bits, before the sum
  bool output_unmapped;     // some pages of some x.out are not mapped yet
};

// A normalised tensor as it was before its norm, and the memory for the gradient of its weight.
struct NormGradTensor {
  const void* x;
  Strides x_stride;  // channels in the pairing of RotatedTensor::out
  // Sums over blocks of kBlockTokens tokens: (quotient_up(batch * seqlen, kBlockTokens), head_dim), contiguous, of the
  // type of arithmetic; written before they are added. Null: the gradient of the weight is not wanted.
  void* block_sums;
  void* grad_weight;  // (head_dim,), contiguous, of the type of arithmetic
};

// The rotation is the transposed one, and x[i].in the gradient of the result of norm and rotation. x[i].out receives
// the gradient of x, or is null: not wanted. A tensor that is not normalised is only rotated. With round_weighted, the
// rotated gradient is rounded to dtype.
struct NormGradParams : RotateParams {
  NormGradTensor of_norm[kMaxTensors];
};

// `source` is not kFrequencies.
struct TableGradParams : Rotation {
  GradTensor x[kMaxTensors];
  int32_t num_tensors;
  WrittenTable cos, sin;  // receive the gradients of the tables, one row per token
  int64_t table_batches;  // distinct rows along their batch axis: 1, or the batch of x, possibly 0
};

struct CosSinParams : Tokens {
  DType dtype;  // of the outputs: float32 or float64, the type of arithmetic
  int64_t heads, pairs;
  Frequencies frequencies;
  // Contiguous outputs: cos and sin (batch, seqlen, heads, pairs), positions (frequencies.axes, batch, seqlen).
  void *cos_out, *sin_out, *positions_out;
};

}  // namespace rope
