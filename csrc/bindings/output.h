// Memory for results that an op allocates. These functions raise ErrorType::kOutOfMemory where torch has none.
#pragma once

#include <initializer_list>

#include "bindings/tensor.h"

namespace rope {

// As torch.empty_like(x), past the dispatcher where that is possible.
Tensor empty_like(const Tensor& x);

// Contiguous, on the device of x.
Tensor new_empty(const Tensor& x, std::initializer_list<int64_t> sizes, ScalarType dtype);

// `empty_like` for the memory of a CPU. On Linux large memory whose pages do not exist yet is asked for in huge pages
// (a fault per 2 MiB instead of one per 4 KiB), unless the environment says ROPE_EXT_HUGEPAGES=0. `unmapped` becomes
// true when it is such memory.
Tensor empty_like_output(const Tensor& x, bool* unmapped);

}  // namespace rope

// Results of at least 1 MiB come from a pool from now on, which keeps at most `max_bytes` of those that are freed; 0,
// the state at the start: no pool. For ctypes (rope_ext/memory.py).
extern "C" __attribute__((visibility("default"))) void rope_ext_set_output_pool(int64_t max_bytes);
