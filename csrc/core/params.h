// The seam: everything a kernel is told. Pointers and strides below, tensors above.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/positions.h"
#include "core/view.h"

namespace rope {

// Most tensors in one launch. Every known model has two or three (q, k and sometimes v).
constexpr int kMaxTensors = 8;

// Where cos and sin come from: tables with one entry per pair or one per channel, or frequencies and positions.
enum class Source { kPerPair, kPerChannel, kFrequencies };

// The tokens of a call, and which row of the tables or which position each of them has.
struct Tokens {
  int64_t batch, seqlen;
  Positions positions;
};

// What rotate and table_grad are both told.
struct Rotation : Tokens {
  DType dtype;  // of x
  int64_t rotary_offset, pairs;
  Pairing pairing, out_pairing;  // of x and of the result; in place the same
  Source source;
  DType table_dtype;    // of cos and sin
  int64_t table_heads;  // rows that differ along the heads axis of cos and sin: 1, or as many as x has heads, even 0
  bool negate_sin;      // rotate by the negative angle
};

struct RotateParams : Rotation {
  RotatedTensor x[kMaxTensors];
  int32_t num_tensors;
  Table cos, sin;           // for Source::kPerPair and kPerChannel
  Frequencies frequencies;  // for Source::kFrequencies
  bool round_products;      // to dtype, of 16 bits, before they are added
  bool output_unmapped;     // some pages of some x.out are not mapped yet
};

// `source` is not kFrequencies.
struct TableGradParams : Rotation {
  GradTensor x[kMaxTensors];
  int32_t num_tensors;
  WrittenTable cos, sin;  // receive the gradients of the tables, one row per token
  int64_t table_batches;  // rows that differ along their batch axis: 1, or as many as x has batch entries, even 0
};

struct CosSinParams : Tokens {
  DType dtype;  // of all that is written: the type of arithmetic
  int64_t heads, pairs;
  Frequencies frequencies;
  // Contiguous: cos and sin (batch, seqlen, heads, pairs), the positions (frequencies.axes, batch, seqlen).
  void *cos_out, *sin_out, *positions_out;
};

}  // namespace rope
