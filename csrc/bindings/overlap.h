// Do two strided views of memory share a byte? The checks ask before an op writes through one of them.
#pragma once

#include <cstdint>

namespace rope {

constexpr int kMaxRank = 4;

// sizes and strides: one per axis. Strides are in elements, of any sign; along axes of one element, and in a view
// without elements, they may be any number.
struct MemoryView {
  const char* data;
  int64_t item_size;  // bytes
  int rank;
  int64_t sizes[kMaxRank], strides[kMaxRank];
};

// Whether two elements of the view may be the same memory. Exact for views whose strides nest (each at least the span
// of the smaller ones: everything that slicing, transposing and reshaping make); true for the rest.
bool overlaps_itself(const MemoryView& view);

// Whether the two views share a byte. Exact (q and k sliced from one packed buffer interleave without sharing); true if
// the search gives up, which it does only for strides that no slicing, transposing or reshaping makes.
bool overlap(const MemoryView& a, const MemoryView& b);

}  // namespace rope
