// Raises the errors of the bindings, "rope_ext: <argument> must <rule>, got <value>", and formats shapes for them.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "bindings/names.h"
#include "bindings/tensor.h"

namespace rope {

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

// The Python type of an error, numbered as in rope_ext/_torch/errors.py. The type of the C++ exception cannot convey
// it, because releases of torch translate exceptions differently.
enum class ErrorType : int { kNone = 0, kValueError = 1, kTypeError = 2, kOutOfMemory = 3 };

// Stores the type in a thread-local variable for rope_ext_take_error_type, and throws.
[[noreturn]] void raise(ErrorType type, const std::string& message);

template <class Got>
[[noreturn]] void bad_value(const char* argument, const std::string& rule, const Got& got) {
  raise(ErrorType::kValueError, text("rope_ext: ", argument, " must ", rule, ", got ", got));
}
template <class Got>
[[noreturn]] void bad_type(const char* argument, const std::string& rule, const Got& got) {
  raise(ErrorType::kTypeError, text("rope_ext: ", argument, " must ", rule, ", got ", got));
}

template <class List>
std::string tuple_of(const List& list) {
  std::string tuple = "(";
  for (const int64_t item : list) tuple += text(tuple.size() > 1 ? ", " : "", item);
  return tuple + (list.size() == 1 ? ",)" : ")");
}
inline std::string shape_of(const Tensor& t) { return tuple_of(t.sizes()); }
inline std::string strides_of(const Tensor& t) { return tuple_of(t.strides()); }

inline void same_device(const char* argument, const Tensor& t, const Tensor& x) {
  if (t.device_type() != x.device_type() || t.device_index() != x.device_index()) {
    bad_value(argument, "be on the device of x, " + device_of(x), device_of(t));
  }
}

}  // namespace rope

// Returns the ErrorType of this thread's last error, and resets it to kNone. For ctypes (rope_ext/_torch/errors.py).
extern "C" __attribute__((visibility("default"))) int rope_ext_take_error_type();
