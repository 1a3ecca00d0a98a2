// Explains errors of CUDA kernel launches, and what to do about them. Includes neither Torch nor CUDA, so that tests
// can compile it alone.
#pragma once

#include <string>

namespace rope {

// The message for `error`, the name of an error in the CUDA runtime such as "cudaErrorAssert". blocking:
// CUDA_LAUNCH_BLOCKING is set. checks_positions: ROPE_EXT_CHECK_POSITIONS is set.
std::string launch_error(const std::string& error, bool blocking, bool checks_positions);

}  // namespace rope
