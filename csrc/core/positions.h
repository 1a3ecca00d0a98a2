// Finds the row of the cos/sin table that a token reads, or the position that its angles are computed from (angles.h).
// Tables with one row per token come without positions, offsets and cu_seqlens: there the row is the token.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace rope {

// Special rows. kNotRotated: the token is past the last boundary of cu_seqlens, and is copied. kOutside: the row is
// outside the table, or the sequence begins at a negative boundary; the rotated channels become NaN. The checks reject
// such rows on a CPU, so kOutside occurs only on a GPU, whose positions the host does not read, or if another thread
// changes the positions after the check.
constexpr int64_t kNotRotated = -1, kOutside = -2;

// A tensor of int32 or int64; Positions::fractional ones have the arithmetic type instead.
struct Index {
  const void* data;  // null: absent
  bool is_64;
};

ROPE_INLINE int64_t load(const Index& index, int64_t at) {
  if (index.is_64) return ROPE_LOAD_ONCE(int64_t, static_cast<const int64_t*>(index.data) + at);
  return ROPE_LOAD_ONCE(int32_t, static_cast<const int32_t*>(index.data) + at);
}

// row = (positions[batch, token], or token - start of its sequence, or token) + offset + offsets[batch]
struct Positions {
  Index positions;  // (axes, batch, seqlen)
  bool fractional;  // positions are floating-point numbers of the arithmetic type; with frequencies only
  int64_t positions_axis_stride, positions_batch_stride, positions_token_stride;  // in elements; 0 broadcasts
  Index offsets;                                                                  // (batch,)
  int64_t offsets_stride;                                                         // in elements; 0: one offset for all
  Index cu_seqlens;           // (nseq + 1,), ascending from 0: sequence i is tokens [cu_seqlens[i], cu_seqlens[i + 1])
  int64_t cu_seqlens_stride;  // in elements
  int64_t nseq;               // sequences
  int64_t offset;             // added to every position
  int64_t rows;               // of the table
};

// The last boundary of cu_seqlens at or below `token`, by binary search: kOutside if it is negative, kNotRotated if it
// is the end of the last sequence. If the boundaries do not ascend, the search ends at any of them.
ROPE_INLINE int64_t last_boundary(const Positions& p, int64_t token) {
  int64_t low = 0, high = p.nseq;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (load(p.cu_seqlens, middle * p.cu_seqlens_stride) <= token) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  if (low == p.nseq) return kNotRotated;
  const int64_t boundary = load(p.cu_seqlens, low * p.cu_seqlens_stride);
  return boundary < 0 ? kOutside : boundary;
}

// The offset of a batch entry. Unsigned, so that overflow wraps instead of being undefined.
ROPE_INLINE uint64_t offset_of(const Positions& p, int64_t batch) {
  const uint64_t offset = p.offsets.data ? load(p.offsets, batch * p.offsets_stride) : 0;
  return offset + static_cast<uint64_t>(p.offset);
}

ROPE_INLINE int64_t position_index(const Positions& p, int64_t batch, int64_t token, int64_t axis) {
  return axis * p.positions_axis_stride + batch * p.positions_batch_stride + token * p.positions_token_stride;
}

// The position before any offset is added. start: the first token of the sequence, as in the functions below.
ROPE_INLINE int64_t position_before_offset(const Positions& p, int64_t batch, int64_t token, int64_t start,
                                           int64_t axis = 0) {
  if (p.positions.data) return load(p.positions, position_index(p, batch, token, axis));
  return token - start;
}

// The position plus its offsets: the row, before it is compared with the table. start must be a token, and the
// positions must not be fractional.
ROPE_INLINE int64_t position_with_offset(const Positions& p, int64_t batch, int64_t token, int64_t start,
                                         int64_t axis = 0) {
  const int64_t position = position_before_offset(p, batch, token, start, axis);
  return static_cast<int64_t>(static_cast<uint64_t>(position) + offset_of(p, batch));
}

// The first token of the sequence that holds `token`, kNotRotated or kOutside.
ROPE_INLINE int64_t sequence_start(const Positions& p, int64_t token) {
  return p.cu_seqlens.data ? last_boundary(p, token) : 0;
}

// The row of a position, whatever is in memory: 0 to rows - 1 or kOutside. A sum that overflows is outside: only two
// negative numbers could wrap around to a row, and these are excluded.
ROPE_INLINE int64_t row_in_table(int64_t position, int64_t offset, int64_t rows) {
  const int64_t row = static_cast<int64_t>(static_cast<uint64_t>(position) + static_cast<uint64_t>(offset));
  return row >= 0 && row < rows && (position & offset) >= 0 ? row : kOutside;
}

// The row of a position plus both offsets, in the sequence that begins at `start`. Another thread may have changed
// position and offset since the check, so they are read once (see ROPE_LOAD_ONCE for GPUs). An offset that overflows
// becomes INT64_MIN, for which every position is outside.
ROPE_INLINE int64_t row_at(const Positions& p, int64_t batch, int64_t start, int64_t position) {
  int64_t offset = p.offset;
  if (p.offsets.data) {
    const int64_t more = load(p.offsets, batch * p.offsets_stride);
    const int64_t sum = static_cast<int64_t>(static_cast<uint64_t>(offset) + static_cast<uint64_t>(more));
    offset = ((offset ^ sum) & (more ^ sum)) < 0 ? INT64_MIN : sum;
  }
  return start == kOutside ? kOutside : row_in_table(position, offset, p.rows);
}

// The row that a token reads: 0 to rows - 1, kNotRotated or kOutside.
ROPE_INLINE int64_t table_row(const Positions& p, int64_t batch, int64_t token) {
  const int64_t start = sequence_start(p, token);
  if (start == kNotRotated) return kNotRotated;
  return row_at(p, batch, start, position_before_offset(p, batch, token, start));
}

}  // namespace rope
