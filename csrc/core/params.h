// The seam: everything a kernel is told. Pointers and strides below, tensors above.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/positions.h"
#include "core/view.h"

namespace rope {

// Tensors in one launch. Two or three in every known model (q, k and sometimes v).
constexpr int kMaxTensors = 8;

struct Params {
  RotatedTensor x[kMaxTensors];
  int32_t num_tensors;
  DType dtype;        // of x
  DType table_dtype;  // of cos and sin
  int64_t batch, seqlen;
  int64_t rotary_offset, pairs;
  Pairing pairing, out_pairing;  // of in and out; in place the same
  Table cos, sin;
  // Rows that differ along the batch and heads axes of the tables: 1, which all share, or as many as x has, even 0.
  int64_t table_batches, table_heads;
  bool per_channel;     // one entry per channel in cos and sin, not one per pair
  bool negate_sin;      // turn by the negative angle
  bool round_products;  // to dtype, of 16 bits, before they are added
  bool fresh;           // pages of some x.out do not exist yet
  // 0: cos and sin are tables. Else they are the high and low part of a frequency in turns per position, in the type of
  // arithmetic, for each axis of the positions (row_stride) and each pair (pair_stride 1); angles.h makes cos and sin.
  int64_t axes;
  double attention_scaling;  // factor on that cos and sin
  Positions positions;
};

}  // namespace rope
