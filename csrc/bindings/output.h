// Allocation of results. These functions raise ErrorType::kOutOfMemory where torch has no memory.
#pragma once

#include <initializer_list>

#include "bindings/tensor.h"

namespace rope {

// torch.empty_like(x), without the dispatcher where that is possible. x must outlive the result.
Tensor empty_like(const Tensor& x);

// A contiguous tensor of at most four axes on the device of x. dtype: a number of the stable ABI.
Tensor new_empty(const Tensor& x, std::initializer_list<int64_t> sizes, int32_t dtype);

// empty_like for results on a CPU, from the pool if there is one. On Linux, `unmapped` becomes true for large memory
// whose pages are not mapped yet, and huge pages are requested (a fault per 2 MiB, not 4 KiB) unless
// ROPE_EXT_HUGEPAGES=0 is set.
Tensor empty_like_output(const Tensor& x, bool* unmapped);

}  // namespace rope

// From now on results of at least 1 MiB on a CPU come from a pool, which keeps at most `max_bytes` of freed ones; 0,
// the initial value, means no pool. For ctypes (rope_ext/memory.py).
extern "C" __attribute__((visibility("default"))) void rope_ext_set_output_pool(int64_t max_bytes);
