// Registration of the ops with torch, by one copy of this library per process and namespace.
#pragma once

#include <torch/csrc/stable/library.h>

namespace rope {

// Defines the ops of schema.cpp at the first call. Returns false, after a line on stderr, where another library has
// defined them: then this one registers nothing.
bool defines_ops();

// The path of this library.
const char* own_file();

// Where torch finds the ops, torch.ops.<namespace>: ROPE_EXT_NAMESPACE of CMakeLists.txt.
const char* op_namespace();

// Registers the kernels of a device, Ops<Device>, at its dispatch key; called when the library is loaded.
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
// functions of namespace rope, because the linker may bind exported ones to those of another copy.
extern "C" __attribute__((visibility("default"))) bool rope_ext_defines_ops();
extern "C" __attribute__((visibility("default"))) const char* rope_ext_namespace();
