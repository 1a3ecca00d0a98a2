// Sums over the channels of heads, in the tree order of core/norm.h.
#pragma once

#include <algorithm>

#include "core/integer.h"
#include "core/norm.h"
#include "cpu/channels.h"

namespace rope::cpu {
namespace {

// kSumLanes partial sums of a head, in run order: each adds the channels that are equal modulo kSumLanes.
template <class T>
struct Sums32 {
  static constexpr int kSteps = kSumLanes / kStep<T>;
  Lanes<T> lanes[kSteps];
};

// Adds kBlocks blocks of kSumLanes channels (`block`, block + step, block + 2 * step ..) in tree order. product(full,
// channel, n): the summands of n channels from `channel` on, in run order. kWhole: the head fills all of the blocks, so
// that no tail is checked.
template <class T, int kBlocks, bool kWhole, class Product>
ROPE_INLINE Sums32<T> sum_of_blocks(const Product& product, int64_t head_dim, int64_t block, int64_t step) {
  Sums32<T> sums;
  if constexpr (kBlocks == 1) {
    for (int i = 0; i < sums.kSteps; ++i) {
      const int64_t channel = block * kSumLanes + i * kStep<T>, left = head_dim - channel;
      if (kWhole || left >= kStep<T>) {
        sums.lanes[i] = product(std::true_type{}, channel, kStep<T>);
      } else {
        sums.lanes[i] = left > 0 ? product(std::false_type{}, channel, left) : Lanes<T>{};
      }
    }
  } else {
    const auto a = sum_of_blocks<T, kBlocks / 2, kWhole>(product, head_dim, block, 2 * step);
    const auto b = sum_of_blocks<T, kBlocks / 2, kWhole>(product, head_dim, block + step, 2 * step);
    for (int i = 0; i < sums.kSteps; ++i) sums.lanes[i] = a.lanes[i] + b.lanes[i];
  }
  return sums;
}

// sum_of_blocks for a run-time number of blocks, a power of two.
template <class T, class Product>
Sums32<T> sum_of_many_blocks(const Product& product, int64_t head_dim, int64_t block, int64_t step, int64_t blocks) {
  if (blocks == 1) return sum_of_blocks<T, 1, false>(product, head_dim, block, step);
  auto sums = sum_of_many_blocks<T>(product, head_dim, block, 2 * step, blocks / 2);
  const auto b = sum_of_many_blocks<T>(product, head_dim, block + step, 2 * step, blocks / 2);
  for (int i = 0; i < sums.kSteps; ++i) sums.lanes[i] = sums.lanes[i] + b.lanes[i];
  return sums;
}

// Returns (a0 + a1, a2 + a3, .., b0 + b1, ..).
template <class V>
ROPE_INLINE V add_neighbours(V a, V b) {
  return shuffle(a, b, [](int i) { return 2 * i; }) + shuffle(a, b, [](int i) { return 2 * i + 1; });
}

template <int kCount, class V>
ROPE_INLINE V add_all_neighbours(const V* v) {
  if constexpr (kCount == 1) {
    return v[0];
  } else {
    return add_neighbours(add_all_neighbours<kCount / 2>(v), add_all_neighbours<kCount / 2>(v + kCount / 2));
  }
}

// Adds neighbors, level by level of the tree, until one vector of sums is left.
template <class T>
ROPE_INLINE Vector<Arithmetic<T>> folded(const Sums32<T>& sums) {
  Vector<Arithmetic<T>> v[sums.kSteps];
  for (int i = 0; i < sums.kSteps; ++i) {
    if constexpr (std::is_same_v<Lanes<T>, Vector<Arithmetic<T>>>) {
      v[i] = sums.lanes[i];
    } else {
      v[i] = sums.lanes[i].even + sums.lanes[i].odd;
    }
  }
  return add_all_neighbours<sums.kSteps>(v);
}

// to[h] = sum(product_of(h)), for `heads` heads. sum: returns a vector of sums, like `folded`. `to` holds
// room_for(heads) numbers.
template <class Sum, class ProductOf, class A>
ROPE_INLINE void sum_heads_by(const Sum& sum, int64_t heads, const ProductOf& product_of, A* to) {
  using V = Vector<A>;
  constexpr int kCount = kLanes<V>;
  V sums[kCount];
  for (int64_t first = 0; first < heads; first += kCount) {
    const int64_t n = heads - first < kCount ? heads - first : kCount;
    for (int64_t i = 0; i < n; ++i) sums[i] = sum(product_of(first + i));
    for (int64_t i = n; i < kCount; ++i) sums[i] = V{};
    write_lanes(to + first, add_all_neighbours<kCount>(sums));
  }
}

// Sums a head of `blocks` blocks, a power of two. kBlocks: the same number, or 0 if it is known only at run time.
template <class T, int kBlocks, bool kWhole>
struct SumOfHead {
  int64_t head_dim, blocks;

  template <class Product>
  Vector<Arithmetic<T>> operator()(const Product& product) const {
    if constexpr (kBlocks == 0) {
      return folded(sum_of_many_blocks<T>(product, head_dim, 0, 1, blocks));
    } else {
      return folded(sum_of_blocks<T, kBlocks, kWhole>(product, head_dim, 0, 1));
    }
  }
};

// to[h] = the sum over head h, for `heads` heads. product_of(h): the `product` of head h for sum_of_blocks. `to` holds
// room_for(heads) numbers. kUnrolled: instantiates unrolled code for head_dim 32, 64, 65 to 128, and 256.
template <class T, bool kUnrolled, class ProductOf, class A>
void sum_heads(int64_t heads, int64_t head_dim, const ProductOf& product_of, A* to) {
  int64_t blocks = 1;
  while (blocks * kSumLanes < head_dim) blocks *= 2;
  const auto sum = [&](auto count, auto whole) {
    sum_heads_by(SumOfHead<T, decltype(count)::value, decltype(whole)::value>{head_dim, blocks}, heads, product_of, to);
  };
  const std::true_type whole;
  const std::false_type partial;
  if constexpr (kUnrolled) {
    if (head_dim == 32) return sum(std::integral_constant<int, 1>{}, whole);
    if (head_dim == 64) return sum(std::integral_constant<int, 2>{}, whole);
    if (head_dim == 128) return sum(std::integral_constant<int, 4>{}, whole);
    if (head_dim == 256) return sum(std::integral_constant<int, 8>{}, whole);
    if (blocks == 4) return sum(std::integral_constant<int, 4>{}, partial);
  }
  sum(std::integral_constant<int, 0>{}, partial);
}

// The numbers that sum_heads writes for `heads` heads, rounded up to whole vectors.
template <class A>
int64_t room_for(int64_t heads) {
  return round_up(heads, kLanes<Vector<A>>);
}

}  // namespace
}  // namespace rope::cpu
