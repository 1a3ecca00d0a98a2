// Integer division by a number known on the host, as a multiplication and a shift: GPUs have no instruction for it.
#pragma once

#include <cstdint>

#include "core/integer.h"
#include "core/macros.h"

namespace rope::cuda {

// Divides n, 0 <= n < 2^kBits. shift is the smallest number with by <= 2^shift, and factor is 2^(kBits + shift) / by,
// rounded up. n * factor / 2^(kBits + shift) therefore exceeds n / by by less than n / 2^(kBits + shift) < 1 / by, and
// does not reach the next integer.
template <class Int>
struct Divisor;

template <>
struct Divisor<int> {
  static constexpr int kBits = 31;
  uint32_t factor;
  int shift;
  int by, minus;  // minus: -by, which saves a negation
};

template <>
struct Divisor<int64_t> {
  static constexpr int kBits = 62;
  uint64_t factor;
  int shift;
  int64_t by, minus;
};

// by: from 1 to 2^kBits - 1.
template <class Int>
inline Divisor<Int> divisor_of(int64_t by) {
  int shift = 0;
  while ((int64_t{1} << shift) < by) ++shift;
  const unsigned __int128 power = static_cast<unsigned __int128>(1) << (Divisor<Int>::kBits + shift);
  const auto divisor = static_cast<Int>(by);
  return {static_cast<decltype(Divisor<Int>::factor)>((power + by - 1) / by), shift, divisor, -divisor};
}

// The high halves of 2 * n * factor and 4 * n * factor are n * factor / 2^kBits.
ROPE_INLINE int quotient(int n, const Divisor<int>& d) {
  const uint32_t twice = static_cast<uint32_t>(n) << 1;
#if defined(__CUDA_ARCH__)
  return static_cast<int>(__umulhi(twice, d.factor) >> d.shift);
#else
  return static_cast<int>(static_cast<uint32_t>(uint64_t{twice} * d.factor >> 32) >> d.shift);
#endif
}
ROPE_INLINE int64_t quotient(int64_t n, const Divisor<int64_t>& d) {
  const uint64_t four_times = static_cast<uint64_t>(n) << 2;
#if defined(__CUDA_ARCH__)
  return static_cast<int64_t>(__umul64hi(four_times, d.factor) >> d.shift);
#else
  const auto product = static_cast<unsigned __int128>(four_times) * d.factor;
  return static_cast<int64_t>(static_cast<uint64_t>(product >> 64) >> d.shift);
#endif
}

// n - q * by, where q is the quotient.
template <class Int>
ROPE_INLINE Int remainder(Int n, Int q, const Divisor<Int>& d) {
  return n + q * d.minus;
}

}  // namespace rope::cuda
