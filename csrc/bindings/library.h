// Registration of the ops with torch, by one copy of this library per process.
#pragma once

#include <torch/csrc/stable/library.h>

namespace rope {

// Defines the ops of schema.cpp at the first call. Returns false, after a line on stderr, where another library has
// defined them: then this one registers nothing.
bool defines_ops();

// The path of this library.
const char* own_file();

// Registers the kernels of a device, Ops<Device>, at its dispatch key; called when the library is loaded.
template <class OpsOfDevice>
bool register_kernels(const char* key) {
  using torch::stable::detail::StableLibrary;
  if (!defines_ops()) return false;
  static StableLibrary library(StableLibrary::Kind::IMPL, "rope_ext", key, own_file(), 0);
  OpsOfDevice::add_to(library);
  return true;
}

}  // namespace rope

// rope::defines_ops for ctypes (rope_ext/_torch/library.py).
extern "C" __attribute__((visibility("default"))) bool rope_ext_defines_ops();
