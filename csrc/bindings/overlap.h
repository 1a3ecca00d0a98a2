// Do two strided views of memory share a byte? The checks ask before an op writes through one of them.
#pragma once

#include <cstdint>

namespace rope {

constexpr int kMaxRank = 4;

// Made by memory_view. sizes and strides: one per axis, at most kMaxRank. Strides are in elements, of any sign; along
// axes of one element, and in a view without elements, they may be any number.
struct MemoryView {
  const char* data;
  int64_t item_size;  // bytes
  int rank;
  const int64_t *sizes, *strides;
  const char *begin, *end;  // the bytes that the elements lie between; equal if there are none
};

// The view of elements at `data`, with its begin and end.
MemoryView memory_view(const void* data, int64_t item_size, int rank, const int64_t* sizes, const int64_t* strides);

// Whether two elements of the view may be the same memory. Exact for views whose strides nest (each at least the span
// of the smaller ones: everything that slicing, transposing and reshaping make); true for the rest.
bool overlaps_itself(const MemoryView& view);

// Whether the two views share a byte. Exact (q and k sliced from one packed buffer interleave without sharing); true if
// the search gives up, which it does only for strides that no slicing, transposing or reshaping makes.
bool overlap(const MemoryView& a, const MemoryView& b);

}  // namespace rope
