// Allocates results. The functions raise ErrorType::kOutOfMemory if torch is out of memory.
#pragma once

#include <initializer_list>

#include "bindings/tensor.h"

namespace rope {

// torch.empty_like(x), bypassing the dispatcher where possible. x must outlive the result, which may refer to its
// sizes.
Tensor empty_like(const Tensor& x);

// An uninitialized contiguous tensor of at most four axes on the device of x. dtype: a code of the stable ABI.
Tensor new_empty(const Tensor& x, std::initializer_list<int64_t> sizes, int32_t dtype);

// empty_like for CPU results, from the output pool if it is enabled. On Linux, *unmapped becomes true for a large
// allocation whose pages are not mapped yet, and huge pages are requested for it unless ROPE_EXT_HUGEPAGES=0 is set:
// they fault once per 2 MiB instead of once per 4 KiB.
Tensor empty_like_output(const Tensor& x, bool* unmapped);

}  // namespace rope

// Enables the output pool: from now on CPU results of at least 1 MiB come from it, and it caches at most `max_bytes` of
// freed results. 0, the initial value, disables it. For ctypes (rope_ext/memory.py).
extern "C" __attribute__((visibility("default"))) void rope_ext_set_output_pool(int64_t max_bytes);
