// Element types, and their conversion to and from the type of their arithmetic. Promise: widening is exact; narrowing
// rounds once, to nearest even, as PyTorch does, NaN and denormals included.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"

namespace rope {

enum class DType : int32_t { kFloat64, kFloat32, kBFloat16, kFloat16 };

ROPE_INLINE int64_t bytes_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// Storage types of two bytes; their arithmetic is in fp32.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The arithmetic type of an element type: the type of its products and sums.
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

// std::bit_cast of C++20: the bits of `from` as a value of another type of the same size.
template <class To, class From>
ROPE_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits_as needs types of one size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// ---- 16 bits to and from the bits of fp32 ----
// These functions work on one value (Bits = uint32_t, Float = float) or on a vector of values (csrc/cpu/vector.h), with
// the 16 bits in the low half of Bits. They select instead of branching, so that one source serves both.

// Rounds fp32 to bfloat16, in the high 16 bits. A NaN must have zeros in its low half; otherwise the carry can make it
// -0.
template <class Bits>
ROPE_INLINE Bits bfloat16_rounded(Bits bits) {
  return bits + 0x7fffu + ((bits >> 16) & 1u);
}

template <class Float, class Bits>
ROPE_INLINE Bits fp32_of_float16(Bits half) {
  const Bits magnitude = (half & 0x7fffu) << 13;
  const Bits exponent = magnitude & 0x0f800000u;
  const Bits normal = magnitude + 0x38000000u;   // exponent bias 15 -> 127
  const Bits special = magnitude + 0x70000000u;  // infinity, NaN
  const Bits denormal = bits_as<Bits>(bits_as<Float>(magnitude + 0x38800000u) - bits_as<float>(0x38800000u));
  const Bits finite = exponent == 0u ? denormal : normal;
  return (exponent == 0x0f800000u ? special : finite) | ((half & 0x8000u) << 16);
}

template <class Float, class Bits>
ROPE_INLINE Bits float16_of_fp32(Bits bits) {
  const Bits magnitude = bits & 0x7fffffffu;
  // Rounding by carry: adds half an ulp of the target (ties to even) before the shift; overflow lands on infinity.
  const Bits normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 0.5 aligns a value below 2^-14 so that the fp32 adder itself rounds it to a multiple of 2^-24.
  const Bits denormal = bits_as<Bits>(bits_as<Float>(magnitude) + 0.5f) - 0x3f000000u;
  // Compared as floats: SSE2 has no unsigned comparison.
  const Float size = bits_as<Float>(magnitude);
  const Bits finite = size < 0x1p-14f ? denormal : normal;
  const Bits ordered = size < 0x1p+16f ? finite : Bits{} + 0x7c00u;
  return (size != size ? Bits{} + 0x7e00u : ordered) | ((bits >> 16) & 0x8000u);
}

ROPE_INLINE double widen(double value) { return value; }
ROPE_INLINE float widen(float value) { return value; }
ROPE_INLINE float widen(BFloat16 value) { return bits_as<float>(static_cast<uint32_t>(value.bits) << 16); }
ROPE_INLINE float widen(Float16 value) { return bits_as<float>(fp32_of_float16<float, uint32_t>(value.bits)); }

ROPE_INLINE void narrow(double value, double* out) { *out = value; }
ROPE_INLINE void narrow(float value, float* out) { *out = value; }
ROPE_INLINE void narrow(float value, BFloat16* out) {
  out->bits = value != value ? 0x7fc0u : static_cast<uint16_t>(bfloat16_rounded(bits_as<uint32_t>(value)) >> 16);
}
ROPE_INLINE void narrow(float value, Float16* out) {
  out->bits = static_cast<uint16_t>(float16_of_fp32<float>(bits_as<uint32_t>(value)));
}

}  // namespace rope
