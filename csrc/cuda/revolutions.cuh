// The work of one thread of the revolutions kernel (see rotate.cuh).
#pragma once

#include "core/revolutions.h"

namespace rope::cuda {

ROPE_INLINE int64_t revolutions_threads(const RevolutionsParams& p) { return p.axes * p.heads * p.pairs; }

// A thread writes one entry of high and of low.
template <class T, class A>
ROPE_INLINE void revolutions_thread(const RevolutionsParams& p, int64_t index) {
  if (index >= revolutions_threads(p)) return;
  const int64_t pair = index % p.pairs, row = index / p.pairs;
  make_revolutions<T, A>(p, row / p.heads, row % p.heads, pair);
}

}  // namespace rope::cuda
