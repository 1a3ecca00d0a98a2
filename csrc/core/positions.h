// Which row of the cos/sin table a token reads. Tables with one row per token are the case without any argument.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace rope {

// Instead of a row. A token past the last boundary of cu_seqlens is copied; one that leads outside the table is rotated
// by NaN, where nobody could refuse it before (on a GPU, whose positions the host does not read).
constexpr int64_t kNotRotated = -1, kOutside = -2;

// int32 or int64 in memory, any stride.
struct Index {
  const void* data;  // null: absent
  bool is_64;
};

ROPE_INLINE int64_t load(const Index& index, int64_t at) {
  return index.is_64 ? static_cast<const int64_t*>(index.data)[at] : static_cast<const int32_t*>(index.data)[at];
}

// row = (positions[batch, token], or token - start of its sequence, or token) + offset + offsets[batch]
struct Positions {
  Index positions;
  int64_t positions_batch_stride, positions_token_stride;  // elements; 0 broadcasts
  Index offsets;                                           // one per batch entry
  int64_t offsets_stride;
  Index cu_seqlens;  // (nseq + 1,) ascending, from 0: sequence i holds tokens [cu_seqlens[i], cu_seqlens[i + 1])
  int64_t cu_seqlens_stride;
  int64_t nseq;
  int64_t offset;
  int64_t rows;  // of the table
};

// kNotRotated, or the boundary at or below `token`; with empty sequences the last of the equal ones, which is the one
// that holds it.
ROPE_INLINE int64_t sequence_start(const Positions& p, int64_t token) {
  int64_t low = 0, high = p.nseq;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (load(p.cu_seqlens, middle * p.cu_seqlens_stride) <= token) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low == p.nseq ? kNotRotated : load(p.cu_seqlens, low * p.cu_seqlens_stride);
}

// The row before it is compared with the table. Not for tokens past the last boundary.
ROPE_INLINE int64_t wanted_row(const Positions& p, int64_t batch, int64_t token, int64_t sequence_start) {
  const int64_t row = p.positions.data
                          ? load(p.positions, batch * p.positions_batch_stride + token * p.positions_token_stride)
                          : token - sequence_start;
  // Unsigned: a sum out of range wraps, and is refused as a row outside the table, instead of being undefined.
  const uint64_t offset = p.offsets.data ? load(p.offsets, batch * p.offsets_stride) : 0;
  return static_cast<int64_t>(static_cast<uint64_t>(row) + offset + static_cast<uint64_t>(p.offset));
}

// 0 to rows - 1, kNotRotated or kOutside.
ROPE_INLINE int64_t table_row(const Positions& p, int64_t batch, int64_t token) {
  const int64_t start = p.cu_seqlens.data ? sequence_start(p, token) : 0;
  if (start == kNotRotated) return kNotRotated;
  const int64_t row = wanted_row(p, batch, token, start);
  return row >= 0 && row < p.rows ? row : kOutside;
}

}  // namespace rope
