// Integer arithmetic that both devices and the bindings need.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace rope {

// The smallest multiple of `to` that is at least n, for n >= 0.
ROPE_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace rope
