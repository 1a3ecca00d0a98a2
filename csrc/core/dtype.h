// Element types, and their conversion to and from the type that arithmetic is done in.
// Promise: widening is exact; narrowing rounds once, to nearest even, as PyTorch does, NaN and denormals included.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"

namespace rope {

enum class DType : int32_t { kFloat64, kFloat32, kBFloat16, kFloat16 };

// Storage only: two bytes whose arithmetic happens in fp32.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The type in which an element type is multiplied and accumulated.
template <class T>
struct ArithmeticOf {
  using type = float;
};
template <>
struct ArithmeticOf<double> {
  using type = double;
};
template <class T>
using Arithmetic = typename ArithmeticOf<T>::type;

ROPE_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}
ROPE_INLINE float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

ROPE_INLINE double widen(double value) { return value; }
ROPE_INLINE float widen(float value) { return value; }
ROPE_INLINE float widen(BFloat16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

// Selects instead of branches, here and below: gcc 12 vectorises these loops and not those with _Float16.
ROPE_INLINE float widen(Float16 value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const uint32_t magnitude = (value.bits & 0x7fffu) << 13;
  const uint32_t exponent = magnitude & 0x0f800000u;
  const uint32_t normal = magnitude + 0x38000000u;   // exponent bias 15 -> 127
  const uint32_t special = magnitude + 0x70000000u;  // infinity, NaN
  const uint32_t denormal = bits_of(float_of(magnitude + 0x38800000u) - float_of(0x38800000u));
  const uint32_t finite = exponent == 0 ? denormal : normal;
  return float_of((exponent == 0x0f800000u ? special : finite) | sign);
}

ROPE_INLINE void narrow(double value, double* out) { *out = value; }
ROPE_INLINE void narrow(float value, float* out) { *out = value; }

ROPE_INLINE void narrow(float value, BFloat16* out) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

ROPE_INLINE void narrow(float value, Float16* out) {
  const uint32_t bits = bits_of(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Rounding by carry: adds half an ulp of the target (ties to even) before the shift; overflow lands on infinity.
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 0.5 aligns a value below 2^-14 so that the fp32 adder itself rounds it to a multiple of 2^-24.
  const uint32_t denormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t finite = magnitude < 0x38800000u ? denormal : normal;
  out->bits = static_cast<uint16_t>((magnitude >= 0x47800000u ? special : finite) | ((bits >> 16) & 0x8000u));
}

}  // namespace rope
