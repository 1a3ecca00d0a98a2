// Names of dtypes and devices for error messages, spelled as in Python.
#pragma once

#include <cctype>
#include <string>

#include "bindings/tensor.h"

namespace rope {

constexpr int kBComplex32 = 46;  // added in torch 2.14; older headers lack it

// The name of a dtype after "torch.". It is the enumerator in lower case, except for enumerators named after C++ types.
inline std::string name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return "float64";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::ComplexHalf:
      return "complex32";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default: {
      if (static_cast<int>(type) == kBComplex32) return "bcomplex32";
      std::string name = torch::headeronly::toString(type);
      for (char& letter : name) letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
      return name;
    }
  }
}

// The device of t as Python prints it, such as "cuda:0".
inline std::string device_of(const Tensor& t) {
  const int32_t type = t.device_type();
  const std::string name = type == aoti_torch_device_type_cpu()    ? "cpu"
                           : type == aoti_torch_device_type_cuda() ? "cuda"
                           : type == aoti_torch_device_type_meta() ? "meta"
                                                                   : "device type " + std::to_string(type);
  return t.device_index() < 0 || name == "cpu" ? name : name + ":" + std::to_string(t.device_index());
}

}  // namespace rope
