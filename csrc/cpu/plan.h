// How a call is executed: decided once, from sizes and strides, identically for every instruction set.
#pragma once

#include "core/params.h"

namespace rope::cpu {

// How the pairs of a row are arranged in memory. kHalf: two contiguous halves. kInterleaved: contiguous pairs. kAny:
// neither, or not the same in all tensors; rows.h then decides for each row.
enum class Access { kHalf, kInterleaved, kAny };

// pairing: in elements of memory, not in channels.
ROPE_INLINE Access access_of(Pairing pairing) {
  if (pairing.step == 1) return Access::kHalf;
  return pairing.step == 2 && pairing.partner == 1 ? Access::kInterleaved : Access::kAny;
}

struct Plan {
  Access access;                        // of all tensors
  bool non_temporal;                    // results are written with non-temporal stores
  int64_t threads;                      // threads worth waking; 0: run on the caller
  int64_t prefetch[kMaxTensors];        // distance in bytes ahead of the row being read; 0: no prefetch
  int64_t prefetch_input[kMaxTensors];  // the same for NormGradTensor::x
};

Plan plan_of(const RotateParams& p);

// Threads share blocks of kBlockTokens tokens instead of single tokens.
Plan plan_of(const NormGradParams& p);

// Sets only access and threads.
Plan plan_of(const TableGradParams& p);

// Threads worth waking for a call of cos_sin.
int64_t threads_for(const CosSinParams& p);

}  // namespace rope::cpu
