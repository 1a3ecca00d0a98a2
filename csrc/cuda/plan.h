// How a call is laid over a grid: decided on the host, once, from sizes, strides and addresses. No CUDA in here.
#pragma once

#include "core/params.h"

namespace rope::cuda {

// Threads of a block, at most.
constexpr int kBlock = 256;

// How the rotated units of a head lie in memory: the two vectors of one are `partner` channels apart (half-split:
// `pairs`; interleaved: side by side), the next unit begins `step` channels on.
struct Units {
  int step, partner;
  bool interleaved;  // pairs lie within vectors; false where a vector is one element
};

// A unit is what a thread reads and writes of one head: two vectors, which are turned together or only copied.
struct Plan {
  int vector;  // elements of one access
  Units in, out;
  bool row_per_head;   // tables have a heads axis
  bool table_vectors;  // rows of cos and sin are aligned for wide accesses
  int rotary_offset, rotary_dim;
  int rotated_units, units;  // of a head; all of them, with those that are copied
  int heads;                 // of all tensors
  // Block b does tokens [b / splits * tokens, + tokens), and the heads that b % splits, + splits * slots, ... leads to.
  int splits, blocks;
  int lanes, slots, tokens;  // of a block: threads along units, heads and tokens
};

// multiprocessors: of the device. Indices are 32 bits wide, offsets into memory 64: batch, seqlen, heads of all
// tensors, head_dim and the number of blocks must each be below 2^30, else blocks is -1.
Plan plan_of(const RotateParams& p, int multiprocessors);

// Where a thread is.
struct Thread {
  int block, lane, slot, token;
};

}  // namespace rope::cuda
