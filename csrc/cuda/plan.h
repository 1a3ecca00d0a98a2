// The grid of a call, decided once, on the host, from sizes, strides and addresses. Plain C++, no CUDA.
#pragma once

#include "core/params.h"

namespace rope::cuda {

// Maximum threads per block.
constexpr int kBlock = 256;

// A unit is what a thread reads and writes of one head at a time: two vectors, which are rotated together or only
// copied. Units says where rotated ones lie: the two vectors of a unit are `partner` channels apart (half-split:
// `pairs`; interleaved: side by side), and the next unit begins `step` channels further on.
struct Units {
  int step, partner;
  bool interleaved;  // pairs lie within vectors; false where a vector is one element
};

struct Plan {
  int vector;  // elements of one access
  Units in, out;
  bool row_per_head;   // each head of a token has its own row of cos and sin
  bool table_vectors;  // rows of cos and sin are aligned for wide accesses
  int rotary_offset, rotary_dim;
  int rotated_units, units;  // units of a head: rotated ones; rotated and copied ones
  int heads;                 // of all tensors
  // `splits` blocks share their tokens: block b covers [b / splits * tokens, + tokens). A thread takes every
  // splits * head_threads-th head, beginning with b % splits * head_threads + Thread::head.
  int splits, blocks;
  int unit_threads, head_threads, tokens;  // threads of a block along units, heads and tokens
};

// multiprocessors: their number on the device. `blocks` is 0 if there is no work, and -1 unless batch, seqlen, the
// heads of all tensors, head_dim and `blocks` are each below 2^30: indices have 32 bits, offsets into memory 64.
Plan plan_of(const RotateParams& p, int multiprocessors);

// The indices of a thread: its block, and within the block along units, heads and tokens.
struct Thread {
  int block, unit, head, token;
};

}  // namespace rope::cuda
