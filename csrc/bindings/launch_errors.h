// What an error of a launch on a GPU means, and what to do about it. Knows neither Torch nor CUDA: tests compile it
// alone.
#pragma once

#include <string>

namespace rope {

// The message for `error`, the CUDA runtime's name of it. blocking: CUDA_LAUNCH_BLOCKING is set. checks_positions:
// ROPE_EXT_CHECK_POSITIONS is.
std::string launch_error(const std::string& error, bool blocking, bool checks_positions);

}  // namespace rope
