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
// copied. The rotated unit u begins u * step accesses past the first rotated channel, and its second access lies
// `partner` accesses past the first: half a head, so that neighbouring threads access neighbouring addresses. Only a
// unit that is read in one pairing and written in the other has interleaved accesses side by side.
struct UnitPairing {
  int step, partner;
};

// Strides counted in accesses. channel is 1 unless an access is one element.
template <class Int>
struct AccessStrides {
  Int batch, token, head, channel;
};

// The grid is a sequence of rounds along y, each for some tokens of all tensors: a row of cos and sin that one tensor
// has read is then still in the L2 for the next. GPUs start blocks in this order, x first; only speed relies on it. A
// round is a sequence of sections, one per tensor.

// The threads [first_thread, first_thread + threads) of each round, which are whole blocks, rotate one tensor. Counted
// through all rounds, they go through the units of a head, then through first_head < head_step, then through the
// tokens. A thread rotates the heads first_head, first_head + head_step, first_head + 2 * head_step, ...
//
// The threads of a head are therefore neighbours. Where their number is a power of two up to 32, they are an aligned
// group of lanes of one warp: head_dim 64, 128 and 256 in 16 and in 32 bits. Otherwise the group may straddle two warps
// (head_dim 72, 80 and 96: 18, 5 and 6 threads in 16 bits); to sum over such a head, `units` would be rounded up to a
// power of two, with idle threads.
template <class Int>
struct Section {
  const void* in;
  void* out;
  Int first_thread, threads;
  int heads;
  Divisor<Int> units, head_step;  // units: of a head
  AccessStrides<Int> in_stride, out_stride;
  Int in_step, out_step;  // strides of head_step heads; 0 where a thread has one head
  int copied;             // accesses of a head that are only copied
};

// How the two accesses of a unit are rotated. Pairs lie across the accesses (half-split, or accesses of one element) or
// within them (interleaved); kOther: another pairing in the result, or rounded products.
enum class Rotating : int { kAcross, kWithin, kOther };

// How rows of cos and sin are read: 16 bytes at a time, where both have the same strides, or one entry after another;
// and whether entries have the type of arithmetic or that of x.
enum class Tables : int { kVectors, kVectorsLikeX, kStrided, kStridedLikeX };

// How the row of a token is found. kToken: every token has the row token + offset, which is in the table. kPosition: it
// is the token's position + offset, where that is in the table. kAny: as table_row finds it (core/positions.h).
enum class Rows : int { kToken, kPosition, kAny };

template <class Int>
struct TableArguments {
  const void *first, *second;
  Int batch_stride, row_stride, head_stride, pair_stride;  // in elements; 0 repeats
};

// What the kernel reads. The members that a plain call needs come first, so that they share few cache lines.
template <class Int>
struct RotateArguments {
  Int tokens;  // batch * seqlen
  Divisor<Int> seqlen;
  int rotated_units;                   // of a head
  int unit_pairs, second_run;          // from the first pair of a unit: to that of the next, to its second run
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
  Section<Int> sections[kMaxTensors];  // those without a tensor begin where a round ends
  Positions positions;
  Frequencies frequencies;
};

// With accesses of more than one element, every index, and every offset in accesses, fits in 32 bits. Other calls,
// which are rare, access element by element.
template <int kWidth>
using IntOf = std::conditional_t<(kWidth > 1), int, int64_t>;

struct Plan {
  int width;             // elements of one access
  int threads;           // of a block
  int heads_per_thread;  // at most; 1 where each head of a token has its own row of cos and sin
  int64_t round_tokens;  // tokens of a round; every block is full, unless there is only one round
  int64_t rounds;        // at most kMostRounds; 0: there is no work
  int64_t blocks;        // of a round
};

// Whether a tensor is normalised.
inline bool has_norm(const RotateParams& p) {
  for (int t = 0; t < p.num_tensors; ++t) {
    if (p.norm[t].weight) return true;
  }
  return false;
}

// Whether batch, seqlen, the heads of a tensor or head_dim is 2^30 or more: kernels keep these indices in 32 bits.
bool too_large(const RotateParams& p);

// For a call that is not too large. multiprocessors: their number on the device.
Plan plan_of(const RotateParams& p, int multiprocessors);

// For a plan with rounds. Int: IntOf<plan.width>.
template <class Int>
RotateArguments<Int> arguments_of(const RotateParams& p, const Plan& plan);

}  // namespace rope::cuda
