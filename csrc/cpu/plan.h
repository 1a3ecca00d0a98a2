// What a call decides once, from its sizes and strides; the same for every instruction set.
#pragma once

#include "core/params.h"

namespace rope::cpu {

// How the pairs of a row lie in memory: kHalf, two runs of channels; kInterleaved, one run of pairs; or kAny.
enum class Access { kHalf, kInterleaved, kAny };

// pairing: in elements.
ROPE_INLINE Access access_of(Pairing pairing) {
  if (pairing.step == 1) return Access::kHalf;
  return pairing.step == 2 && pairing.partner == 1 ? Access::kInterleaved : Access::kAny;
}

struct Plan {
  Access access;                  // of all tensors
  bool non_temporal;              // results go past the caches
  int64_t threads;                // that have enough to do; 0: not even one, so the calling one does it
  int64_t prefetch[kMaxTensors];  // bytes from a row to the row that is asked for meanwhile; 0: none
};

Plan plan_of(const Params& p);

}  // namespace rope::cpu
