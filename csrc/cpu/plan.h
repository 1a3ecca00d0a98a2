// How a call runs, decided once from its sizes and strides, alike for every instruction set.
#pragma once

#include "core/params.h"

namespace rope::cpu {

// How the pairs of rows lie in memory. kHalf: two contiguous halves. kInterleaved: contiguous pairs. kAny: neither, or
// not alike in all tensors; then rows.h decides for each row.
enum class Access { kHalf, kInterleaved, kAny };

// pairing: in elements of memory, not in channels.
ROPE_INLINE Access access_of(Pairing pairing) {
  if (pairing.step == 1) return Access::kHalf;
  return pairing.step == 2 && pairing.partner == 1 ? Access::kInterleaved : Access::kAny;
}

struct Plan {
  Access access;                        // of all tensors
  bool non_temporal;                    // results are written by non-temporal stores
  int64_t threads;                      // threads worth waking; 0: run on the caller
  int64_t prefetch[kMaxTensors];        // distance in bytes from the row that is read; 0: no prefetch
  int64_t prefetch_input[kMaxTensors];  // of NormGradTensor::x, as prefetch
};

Plan plan_of(const RotateParams& p);

// `threads` share blocks of tokens.
Plan plan_of(const NormGradParams& p);

// Only access and threads are set.
Plan plan_of(const TableGradParams& p);

// Threads worth waking for a call of cos_sin.
int64_t threads_for(const CosSinParams& p);

}  // namespace rope::cpu
