// Maps a run-time DType to a template argument: the only switch over DType.
#pragma once

#include "core/dtype.h"

namespace rope {

template <class T>
struct TypeTag {
  using type = T;
};

// Calls function(TypeTag<T>{}) with the element type of `dtype`.
template <class Function>
static void dispatch_dtype(DType dtype, const Function& function) {
  switch (dtype) {
    case DType::kFloat64:
      return function(TypeTag<double>{});
    case DType::kFloat32:
      return function(TypeTag<float>{});
    case DType::kBFloat16:
      return function(TypeTag<BFloat16>{});
    case DType::kFloat16:
      return function(TypeTag<Float16>{});
  }
}

// Calls function(TypeTag<A>{}) with the arithmetic type of `dtype`.
template <class Function>
static void dispatch_arithmetic(DType dtype, const Function& function) {
  if (dtype == DType::kFloat64) return function(TypeTag<double>{});
  function(TypeTag<float>{});
}

}  // namespace rope
