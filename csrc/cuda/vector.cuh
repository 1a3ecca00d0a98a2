// Vectors of elements in memory, for nvcc, and for g++ in tests that run the kernels on a CPU.
#pragma once

#include <type_traits>

#include "core/dtype.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace rope::cuda {

// The elements of one access of up to 16 bytes; its alignment makes it a single instruction. 16-bit elements stay
// packed two to a word until they are used: unpacking them right after the load would stall the next access until they
// have arrived.
template <class T, int kWidth>
struct alignas(kWidth * sizeof(T)) Vector {
  static constexpr bool kTwoToAWord = sizeof(T) == 2 && kWidth > 1;
  using Word = std::conditional_t<kTwoToAWord, uint32_t, T>;
  static constexpr int kWords = kTwoToAWord ? kWidth / 2 : kWidth;
  Word words[kWords];
};

// All pointers in the params are to global memory; the compiler cannot tell once one is loaded from an array.
template <class T>
ROPE_INLINE T* global(T* pointer) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

template <class V>
ROPE_INLINE V read(const V* from) {
  return *global(from);
}

template <class V>
ROPE_INLINE void write(const V& vector, V* to) {
  *global(to) = vector;
}

// The vectors of kWidth elements from `data` on, which must be aligned to them.
template <int kWidth, class T>
ROPE_INLINE const Vector<T, kWidth>* vectors_at(const T* data) {
  return reinterpret_cast<const Vector<T, kWidth>*>(data);
}

template <class T, int kWidth>
ROPE_INLINE void unpack(const Vector<T, kWidth>& vector, T* to) {
  ROPE_UNROLL
  for (int i = 0; i < kWidth; ++i) {
    if constexpr (Vector<T, kWidth>::kTwoToAWord) {
      to[i] = T{static_cast<uint16_t>(vector.words[i / 2] >> (i % 2 * 16))};
    } else {
      to[i] = vector.words[i];
    }
  }
}

// The conversions of core/dtype.h, except for NaN payloads, by GPU instructions: one each instead of up to 14.
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

// Two neighboring elements as one word: a GPU converts both in one instruction.
template <class T>
ROPE_INLINE uint32_t narrowed_word(float low, float high) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, Float16>) return bits_as<uint32_t>(__floats2half2_rn(low, high));
  if constexpr (std::is_same_v<T, BFloat16>) return bits_as<uint32_t>(__floats2bfloat162_rn(low, high));
#endif
  return narrowed<T>(low).bits | uint32_t{narrowed<T>(high).bits} << 16;
}

// Widens the elements of a vector to the arithmetic type.
template <class T, int kWidth>
ROPE_INLINE void widen_vector(const Vector<T, kWidth>& vector, Arithmetic<T>* to) {
  T elements[kWidth];
  unpack(vector, elements);
  ROPE_UNROLL
  for (int i = 0; i < kWidth; ++i) to[i] = widened(elements[i]);
}

template <class T, int kWidth>
ROPE_INLINE void narrow_vector(const Arithmetic<T>* from, Vector<T, kWidth>* to) {
  ROPE_UNROLL
  for (int i = 0; i < Vector<T, kWidth>::kWords; ++i) {
    if constexpr (Vector<T, kWidth>::kTwoToAWord) {
      to->words[i] = narrowed_word<T>(from[2 * i], from[2 * i + 1]);
    } else {
      to->words[i] = narrowed<T>(from[i]);
    }
  }
}

template <class T, int kWidth>
ROPE_INLINE void fill(Arithmetic<T> value, Vector<T, kWidth>* to) {
  Arithmetic<T> values[kWidth];
  ROPE_UNROLL
  for (int i = 0; i < kWidth; ++i) values[i] = value;
  narrow_vector(values, to);
}

}  // namespace rope::cuda
