// The parameters of the kernels: the seam with tensors above it, pointers and strides below.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/positions.h"
#include "core/view.h"

namespace rope {

// Maximum number of tensors in one launch. Every known model has two or three (q, k and sometimes v).
constexpr int kMaxTensors = 8;

// Where cos and sin come from: tables with one entry per pair or per channel, or frequencies and positions.
enum class Source { kPerPair, kPerChannel, kFrequencies };

// The tokens of a call, and the table row or position of each.
struct Tokens {
  int64_t batch, seqlen;  // batch is 1 in layouts without a batch axis
  Positions positions;
};

// The parameters that rotate and table_grad share.
struct Rotation : Tokens {
  DType dtype;                   // of x
  int64_t rotary_offset, pairs;  // the first rotated channel of a head; number of rotated pairs
  Pairing pairing, out_pairing;  // of x and of the result; equal in place
  Source source;
  DType table_dtype;    // of cos and sin
  int64_t table_heads;  // distinct rows along the heads axis of cos and sin: 1, or the heads of x, possibly 0
  bool negate_sin;      // rotate by the negative angle
};

// The RMSNorm of the heads of one tensor before the rotation (core/norm.h). All channels of a head are normalized,
// rotated or not; tokens past the last boundary of cu_seqlens are copied.
struct Norm {
  const void* weight;     // (head_dim,); null: not normalized, and the other fields are ignored
  DType weight_dtype;     // any; for CPU kernels the arithmetic type, with stride 1 (cpu/weights.h)
  int64_t weight_stride;  // in elements; 0 broadcasts
  bool round_unweighted;  // x * r is rounded to the dtype of x before the product with the weight
  // (batch, seqlen, heads), contiguous, of the arithmetic type: r of each head, 0 for copied tokens. Written by rotate,
  // where null means not requested; read by norm_grad.
  void* inv_rms;
};

struct RotateParams : Rotation {
  RotatedTensor x[kMaxTensors];
  int32_t num_tensors;      // of x and norm
  Norm norm[kMaxTensors];   // of x[i]
  double eps;               // added to the mean square of a head
  bool round_weighted;      // normalized channels are rounded to dtype, which has 16 bits, before the rotation
  Table cos, sin;           // for Source::kPerPair and kPerChannel
  Frequencies frequencies;  // for Source::kFrequencies
  bool round_products;      // each product is rounded to dtype, which has 16 bits, before the sum
  bool output_unmapped;     // some pages of some x.out are not mapped yet
};

// The input of a norm, and memory for the gradient of its weight.
struct NormGradTensor {
  const void* x;     // (batch, seqlen, heads, head_dim), of dtype, never null
  Strides x_stride;  // the channels have the pairing of RotatedTensor::out
  // Scratch memory for sums over blocks of kBlockTokens tokens: (quotient_up(batch * seqlen, kBlockTokens), head_dim),
  // contiguous, of the arithmetic type. Null: the gradient of the weight is not requested.
  void* block_sums;
  void* grad_weight;  // (head_dim,), contiguous, of the arithmetic type; null if block_sums is
};

// The derivative of norm and rotation. The rotation is transposed, x[i].in is the gradient of the result, and x[i].out
// receives the gradient of x; null: not requested. Tensors that are not normalized are only rotated. With
// round_weighted, the rotated gradient is rounded to dtype.
struct NormGradParams : RotateParams {
  NormGradTensor of_norm[kMaxTensors];  // of x[i]
};

// The derivative of the rotation with respect to tables; `source` must not be kFrequencies.
struct TableGradParams : Rotation {
  GradTensor x[kMaxTensors];
  int32_t num_tensors;    // of x
  WrittenTable cos, sin;  // receive the gradients of the tables, one row per token
  int64_t table_batches;  // distinct rows along the batch axis of cos and sin: 1, or the batch of x, possibly 0
};

struct CosSinParams : Tokens {
  DType dtype;           // of the outputs: float32 or float64, the arithmetic type
  int64_t heads, pairs;  // of the outputs
  Frequencies frequencies;
  // Contiguous outputs: cos and sin (batch, seqlen, heads, pairs), positions (frequencies.axes, batch, seqlen).
  void *cos_out, *sin_out, *positions_out;
};

}  // namespace rope
