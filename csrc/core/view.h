// Tensors and tables as kernels see them: pointers and strides.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace rope {

// The element `offset` elements behind `data`.
template <class T>
ROPE_INLINE T* at(void* data, int64_t offset) {
  return static_cast<T*>(data) + offset;
}
template <class T>
ROPE_INLINE const T* at(const void* data, int64_t offset) {
  return static_cast<const T*>(data) + offset;
}

// Elements between neighbours along each axis; 0 repeats, negative is allowed. The bindings give 0 along axes of one
// element, whose strides say nothing.
struct Strides {
  int64_t batch, token, head, channel;
};

// One tensor to rotate. `out` may equal `in` (in place, same strides); otherwise the two do not overlap.
struct RotatedTensor {
  const void* in;
  void* out;
  Strides in_stride, out_stride;
  int64_t heads, head_dim;  // at least 1 in rotate and table_grad; cos_sin allows 0
};

// cos or sin. Entry of pair p for the two channels of the pair: first[p * pair_stride], second[p * pair_stride].
// With one entry per pair `second` equals `first`; so it may with one per channel, in a table that repeats (stride 0).
struct Table {
  void* first;
  void* second;
  int64_t batch_stride, row_stride, head_stride, pair_stride;  // elements; 0 repeats
};

// Offset of an entry from Table::first and Table::second.
ROPE_INLINE int64_t entry(const Table& t, int64_t batch, int64_t row, int64_t head, int64_t pair) {
  return batch * t.batch_stride + row * t.row_stride + head * t.head_stride + pair * t.pair_stride;
}

// Where the channels of a pair lie, in channels from rotary_offset: pair p is (p * step, p * step + partner).
struct Pairing {
  int64_t step, partner;
};
ROPE_INLINE Pairing half_pairing(int64_t pairs) { return {1, pairs}; }
ROPE_INLINE Pairing interleaved_pairing() { return {2, 1}; }

}  // namespace rope
