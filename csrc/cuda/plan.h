// The grid of a call to rotate and the arguments of its kernel, decided once, on the host, from sizes, strides and
// addresses. Plain C++, no CUDA.
#pragma once

#include <type_traits>

#include "core/params.h"
#include "cuda/divisor.h"

namespace rope::cuda {

// Threads per block of kernels with one thread per item, and the maximum for rotate.
constexpr int kBlock = 256, kRotateBlock = 128;

// Maximum heads that a thread rotates, one after another.
constexpr int kMostHeadsPerThread = 4;

// Maximum blocks of a grid along x and along y. Those along y are the rounds of rotate.
constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1, kMostRounds = 65535;

// A unit is what a thread reads and writes of one head at a time: two accesses, which are rotated together or only
// copied. The rotated unit u begins u * step accesses past the first rotated channel, and its second access is
// `partner` accesses past the first. partner is half of the rotated accesses, so that neighboring threads access
// neighboring addresses. Only in a unit that is read in one pairing and written in the other are interleaved accesses
// adjacent.
struct UnitPairing {
  int step, partner;
};

// Strides in accesses. channel is 1 unless an access is one element.
template <class Int>
struct AccessStrides {
  Int batch, token, head, channel;
};

// The grid is a sequence of rounds along y, each for some tokens of all tensors: a row of cos and sin that one tensor
// has read is then still in the L2 for the next. GPUs start blocks in this order, x first; only speed depends on it. A
// round is a sequence of sections, one per tensor.

// The threads [first_thread, first_thread + threads) of each round, which are whole blocks, rotate one tensor. Counted
// through all rounds, they go through the units of a head, then through first_head < head_step, then through the
// tokens. A thread rotates the heads first_head, first_head + head_step, first_head + 2 * head_step, ...
//
// The threads of a head are therefore neighbors. If their number is a power of two up to 32, they are an aligned group
// of lanes of one warp: head_dim 64, 128 and 256 in 16 and in 32 bits. Otherwise the group may straddle two warps
// (head_dim 72, 80 and 96: 18, 5 and 6 threads in 16 bits). Calls with a norm round `units` up to a power of two, with
// idle threads, so that a warp can sum a head (head_threads in width.h).
template <class Int>
struct Section {
  const void* in;  // as RotatedTensor::in
  void* out;       // as RotatedTensor::out
  Int first_thread, threads;
  int heads;
  Divisor<Int> units, head_step;  // units: threads of a head
  AccessStrides<Int> in_stride, out_stride;
  Int in_step, out_step;  // strides of head_step heads; 0 if each thread has one head
  int copied;             // accesses of a head that are only copied
};

// How the two accesses of a unit are rotated. kAcross: a pair has one channel in each access (half-split, or accesses
// of one element). kWithin: a pair is in one access (interleaved). kOther: the result has the other pairing, or
// products are rounded.
enum class Rotating : int { kAcross, kWithin, kOther };

// How rows of cos and sin are read. kVectors: up to 16 bytes at a time, which requires equal strides of both. kStrided:
// one entry at a time. LikeX: entries have the type of x; else the arithmetic type.
enum class Tables : int { kVectors, kVectorsLikeX, kStrided, kStridedLikeX };

// How the row of a token is found. kToken: the row is token + offset, which is in the table. kPosition: the row is the
// token's position + offset, if that is in the table. kAny: as table_row finds it (core/positions.h).
enum class Rows : int { kToken, kPosition, kAny };

template <class Int>
struct TableArguments {
  const void *first, *second;
  Int batch_stride, row_stride, head_stride, pair_stride;  // in elements; 0 broadcasts
};

// The parameters of the rotate kernel. The members that a plain call needs come first, so that they share few cache
// lines.
template <class Int>
struct RotateArguments {
  Int tokens;  // batch * seqlen
  Divisor<Int> seqlen;
  int rotated_units;                   // of a head
  int unit_pairs, second_run;          // in pairs, from a unit's first pair: to the next unit's, to its second run
  int rotary_offset, rotary_accesses;  // the rotated channels, in accesses
  UnitPairing in, out;
  Rotating rotating;
  bool negate_sin;
  Tables tables;
  Rows rows;
  bool in_interleaved, out_interleaved, round_products;  // for Rotating::kOther
  Int offset;                                            // for Rows::kToken
  Int positions_batch_stride, positions_token_stride;    // for Rows::kPosition
  TableArguments<Int> cos, sin;
  Section<Int> sections[kMaxTensors];  // sections without a tensor begin at the end of a round
  Positions positions;
  Frequencies frequencies;
};

// The type of indices. With accesses of more than one element, every index, and every offset in accesses, fits in 32
// bits (`compact` in width.h). Other calls, which are rare, access one element at a time.
template <int kWidth>
using IntOf = std::conditional_t<(kWidth > 1), int, int64_t>;

struct Plan {
  int width;             // elements per access
  int threads;           // per block
  int heads_per_thread;  // at most; 1 where each head of a token has its own row of cos and sin
  int64_t round_tokens;  // tokens per round; all blocks are full, unless there is only one round
  int64_t rounds;        // at most kMostRounds; 0: there is no work
  int64_t blocks;        // per round
};

// Whether any tensor is normalized.
inline bool has_norm(const RotateParams& p) {
  for (int t = 0; t < p.num_tensors; ++t) {
    if (p.norm[t].weight) return true;
  }
  return false;
}

// Whether batch, seqlen, the heads of a tensor or head_dim is 2^30 or more: kernels keep these indices in 32 bits.
bool too_large(const RotateParams& p);

// The call must not be too_large. multiprocessors: their number on the device.
Plan plan_of(const RotateParams& p, int multiprocessors);

// plan.rounds must not be 0. Int: IntOf<plan.width>.
template <class Int>
RotateArguments<Int> arguments_of(const RotateParams& p, const Plan& plan);

}  // namespace rope::cuda
