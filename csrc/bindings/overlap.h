// Decides whether strided views of memory overlap; checked before an op writes through one of them.
#pragma once

#include <cstdint>

namespace rope {

constexpr int kMaxRank = 4;

// A strided view of memory, built by memory_view. sizes and strides are borrowed arrays of `rank` <= kMaxRank numbers.
// Strides are in elements and of any sign; the strides of axes of size 1 and of empty views are arbitrary.
struct MemoryView {
  const char* data;
  int64_t item_size;  // bytes
  int rank;
  const int64_t *sizes, *strides;
  const char *begin, *end;  // bounds of the elements, end excluded; equal if the view is empty
};

// The view whose first element, at index 0 of every axis, is at `data`.
MemoryView memory_view(const void* data, int64_t item_size, int rank, const int64_t* sizes, const int64_t* strides);

// Whether two elements of the view may share memory. Exact for nested strides, where each is at least the span of the
// smaller ones, as in all views that slicing, transposing and reshaping produce; true for other strides.
bool overlaps_itself(const MemoryView& view);

// Whether two views share a byte. Exact: q and k sliced from one packed buffer interleave in memory without
// overlapping. Returns true if the search exhausts its budget, which happens only for strides that no slicing,
// transposing or reshaping produces.
bool overlap(const MemoryView& a, const MemoryView& b);

}  // namespace rope
