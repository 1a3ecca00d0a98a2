// Integer arithmetic for both devices and the bindings.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace rope {

// n / by, rounded up, for n >= 0.
ROPE_INLINE int64_t quotient_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// The smallest multiple of `to` that is at least n, for n >= 0.
ROPE_INLINE int64_t round_up(int64_t n, int64_t to) { return quotient_up(n, to) * to; }

}  // namespace rope
