// Tensors and tables as kernels see them: pointers, and strides in elements.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace rope {

// The address `offset` elements of type T past `data`.
template <class T>
ROPE_INLINE T* at(void* data, int64_t offset) {
  return static_cast<T*>(data) + offset;
}
template <class T>
ROPE_INLINE const T* at(const void* data, int64_t offset) {
  return static_cast<const T*>(data) + offset;
}

// Strides in elements, of any sign; 0 broadcasts. The bindings pass 0 for axes of size 1, whose strides are arbitrary.
struct Strides {
  int64_t batch, token, head, channel;
};

// One tensor to rotate. `out` may equal `in` (in place, same strides); otherwise the two do not overlap.
struct RotatedTensor {
  const void* in;  // (batch, seqlen, heads, head_dim), as `out`
  void* out;
  Strides in_stride, out_stride;
  int64_t heads, head_dim;  // at least 1
};

// One tensor x that was rotated, and the gradient of its result.
struct GradTensor {
  const void *x, *grad;  // (batch, seqlen, heads, head_dim)
  Strides x_stride, grad_stride;
  int64_t heads, head_dim;  // at least 1
};

// cos or sin: the entries for the two channels of a pair are first[i] and second[i], where i is the result of `entry`.
// With one entry per pair `second` equals `first`. With one entry per channel they are equal only in a table that
// broadcasts (stride 0).
template <class Data>
struct TableView {
  Data *first, *second;
  int64_t batch_stride, row_stride, head_stride, pair_stride;  // in elements; 0 broadcasts
};
using Table = TableView<const void>;
using WrittenTable = TableView<void>;

template <class Data>
ROPE_INLINE int64_t entry(const TableView<Data>& t, int64_t batch, int64_t row, int64_t head, int64_t pair) {
  return batch * t.batch_stride + row * t.row_stride + head * t.head_stride + pair * t.pair_stride;
}

// The high or the low parts of the frequencies, by axis of the positions, head and pair; contiguous along the pairs.
struct FrequencyPart {
  const void* data;                  // (axes, heads or 1, pairs)
  int64_t axis_stride, head_stride;  // in elements; 0 broadcasts
};

ROPE_INLINE int64_t entry(const FrequencyPart& f, int64_t axis, int64_t head, int64_t pair) {
  return axis * f.axis_stride + head * f.head_stride + pair;
}

// What angles.h computes cos and sin from, in place of tables: high + low is inv_freq in revolutions per position, in
// the arithmetic type.
struct Frequencies {
  FrequencyPart high, low;
  int64_t axes;              // of the positions, at least 1: the angles of all axes are added
  double attention_scaling;  // factor on cos and sin
};

// The channels of a pair, counted from rotary_offset: pair p is the channels (p * step, p * step + partner).
struct Pairing {
  int64_t step, partner;
};
ROPE_INLINE Pairing half_pairing(int64_t pairs) { return {1, pairs}; }
ROPE_INLINE Pairing interleaved_pairing() { return {2, 1}; }

}  // namespace rope
