// Registers the ops with torch; only one copy of this library per process and namespace does.
#pragma once

#include <torch/csrc/stable/library.h>

namespace rope {

// Defines the ops of schema.cpp at the first call. If another library has defined them already, prints a line to stderr
// and returns false: this library then registers nothing.
bool defines_ops();

// The path of this library.
const char* own_file();

// The namespace in torch.ops.<namespace>: ROPE_EXT_NAMESPACE of CMakeLists.txt.
const char* op_namespace();

// Registers Ops<Device> for a dispatch key, "CPU" or "CUDA"; runs when the library is loaded.
template <class OpsOfDevice>
bool register_kernels(const char* key) {
  using torch::stable::detail::StableLibrary;
  if (!defines_ops()) return false;
  static StableLibrary library(StableLibrary::Kind::IMPL, op_namespace(), key, own_file(), 0);
  OpsOfDevice::add_to(library);
  return true;
}

}  // namespace rope

// For ctypes (rope_ext/_torch/library.py): rope::defines_ops and rope::op_namespace. The library itself calls the
// functions in namespace rope, because the dynamic linker may resolve exported symbols to another copy of the library.
extern "C" __attribute__((visibility("default"))) bool rope_ext_defines_ops();
extern "C" __attribute__((visibility("default"))) const char* rope_ext_namespace();
