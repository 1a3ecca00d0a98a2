// Throws the errors of errors.h, and remembers their Python type.
#include "bindings/errors.h"

#include <utility>

namespace rope {
namespace {

thread_local ErrorType last_type = ErrorType::kNone;

}  // namespace

void raise(ErrorType type, const std::string& message) {
  last_type = type;
  // Up to torch 2.14, std::invalid_argument becomes ValueError, the type of most errors, even if no Python code of
  // rope_ext runs between the op and its caller.
  if (type == ErrorType::kValueError) throw std::invalid_argument(message);
  throw std::runtime_error(message);
}

}  // namespace rope

int rope_ext_take_error_type() { return static_cast<int>(std::exchange(rope::last_type, rope::ErrorType::kNone)); }
