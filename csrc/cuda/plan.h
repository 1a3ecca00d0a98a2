// How a call is laid over a grid, decided once, on the host, from sizes, strides and addresses. Plain C++, no CUDA.
#pragma once

#include "core/params.h"

namespace rope::cuda {

// Maximum threads per block.
constexpr int kBlock = 256;

// How the rotated units of a head lie in memory: the two vectors of a unit are `partner` channels apart (half-split:
// `pairs`; interleaved: side by side), and the next unit begins `step` channels further on.
struct Units {
  int step, partner;
  bool interleaved;  // pairs lie within vectors; false where a vector is one element
};

// A unit is what a thread reads and writes of one head: two vectors, which are rotated together or only copied.
struct Plan {
  int vector;  // elements of one access
  Units in, out;
  bool row_per_head;   // tables have a heads axis
  bool table_vectors;  // rows of cos and sin are aligned for wide accesses
  int rotary_offset, rotary_dim;
  int rotated_units, units;  // of a head: those that are rotated; these and those that are copied
  int heads;                 // of all tensors
  // Block b does tokens [b / splits * tokens, + tokens), and every splits * head_threads-th head from those of its
  // threads on: b % splits * head_threads + Thread::head.
  int splits, blocks;
  int unit_threads, head_threads, tokens;  // threads of a block along units, heads and tokens
};

// multiprocessors: their number on the device. Indices are 32 bits wide, offsets into memory 64: `blocks` is -1 unless
// batch, seqlen, the heads of all tensors, head_dim and the number of blocks are each below 2^30.
Plan plan_of(const RotateParams& p, int multiprocessors);

// The indices of a thread: its block, and within the block along units, heads and tokens.
struct Thread {
  int block, unit, head, token;
};

}  // namespace rope::cuda
