// Vectors of elements in memory. Read by nvcc, and by g++ for the tests, which run the kernels on a CPU.
#pragma once

#include <type_traits>

#include "core/dtype.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace rope::cuda {

// One access of up to 16 bytes: the alignment is what makes it one instruction.
template <class T, int kWidth>
struct alignas(kWidth * sizeof(T)) Vector {
  T elements[kWidth];
};

// All pointers of Params are to global memory; a pointer picked out of an array does not show it.
template <class T>
ROPE_INLINE T* global(T* pointer) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

template <int kWidth, class T>
ROPE_INLINE void read(const T* from, T* to) {
  const auto vector = *reinterpret_cast<const Vector<T, kWidth>*>(global(from));
  ROPE_UNROLL
  for (int i = 0; i < kWidth; ++i) to[i] = vector.elements[i];
}

template <int kWidth, class T>
ROPE_INLINE void write(const T* from, T* to) {
  Vector<T, kWidth> vector;
  ROPE_UNROLL
  for (int i = 0; i < kWidth; ++i) vector.elements[i] = from[i];
  *reinterpret_cast<Vector<T, kWidth>*>(global(to)) = vector;
}

// The conversions of core/dtype.h, by the instructions that a GPU has for them: one each instead of up to 14.
template <class T>
ROPE_INLINE Arithmetic<T> widened(T value) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, Float16>) return __half2float(__ushort_as_half(value.bits));
#endif
  return widen(value);
}

template <class T>
ROPE_INLINE T narrowed(Arithmetic<T> value) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, Float16>) return T{__half_as_ushort(__float2half_rn(value))};
  if constexpr (std::is_same_v<T, BFloat16>) return T{__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#endif
  T to;
  narrow(value, &to);
  return to;
}

}  // namespace rope::cuda
