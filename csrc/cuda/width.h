// Selects the elements per access, and counts the accesses and units of a head. Plain C++, no CUDA.
#pragma once

#include <algorithm>
#include <cstdlib>

#include "core/integer.h"
#include "core/norm.h"
#include "cuda/plan.h"

namespace rope::cuda {

// of: a power of two.
inline bool multiple(int64_t n, int64_t of) { return (n & (of - 1)) == 0; }

inline bool aligned(const void* data, int64_t bytes) { return multiple(reinterpret_cast<intptr_t>(data), bytes); }

inline bool is_interleaved(Pairing pairing) { return pairing.step == 2 && pairing.partner == 1; }

// ---- accesses and units of a head ----

inline int64_t rotated_units(const RotateParams& p, int64_t width) { return p.pairs / width; }

// Accesses per head of tensor t that are copied or normalized, but not rotated. In place nothing is copied.
inline int64_t num_copied(const RotateParams& p, int t, int64_t width) {
  const RotatedTensor& x = p.x[t];
  return x.in == x.out && !p.norm[t].weight ? 0 : (x.head_dim - 2 * p.pairs) / width;
}

inline int64_t units(const RotateParams& p, int t, int64_t width) {
  return rotated_units(p, width) + quotient_up(num_copied(p, t, width), 2);
}

// ---- lanes of a head, if any tensor is normalized ----

// Lanes that sum a head in the tree order of core/norm.h, two accesses each: a power of two, at least the units of the
// head.
inline int64_t sum_lanes(int64_t head_dim, int64_t width) {
  int64_t lanes = kSumLanes / width;
  while (2 * lanes * width < head_dim) lanes *= 2;
  return lanes;
}

// Threads per head: its units, or with a norm the lanes of the widest head.
inline int64_t head_threads(const RotateParams& p, int t, int64_t width) {
  if (!has_norm(p)) return units(p, t, width);
  int64_t lanes = 0;
  for (int i = 0; i < p.num_tensors; ++i) lanes = std::max(lanes, sum_lanes(p.x[i].head_dim, width));
  return lanes;
}

// ---- whether a width fits ----

inline bool rows_aligned(const RotateParams& p, const void* data, const Strides& s, int64_t width) {
  return aligned(data, width * bytes_of(p.dtype)) && s.channel == 1 && multiple(s.batch, width) &&
         multiple(s.token, width) && multiple(s.head, width);
}

inline bool pairing_fits(Pairing pairing, int64_t width) {
  return is_interleaved(pairing) || (pairing.step == 1 && multiple(pairing.partner, width));
}

// Whether all of x can be read and written `width` elements at a time.
inline bool fits(const RotateParams& p, int64_t width) {
  if (!pairing_fits(p.pairing, width) || !pairing_fits(p.out_pairing, width)) return false;
  if (!multiple(p.pairs, width) || !multiple(p.rotary_offset, width)) return false;
  for (int t = 0; t < p.num_tensors; ++t) {
    const RotatedTensor& x = p.x[t];
    if (!rows_aligned(p, x.in, x.in_stride, width) || !rows_aligned(p, x.out, x.out_stride, width)) return false;
    if ((x.in != x.out || p.norm[t].weight) && !multiple(x.head_dim, width)) return false;
  }
  return true;
}

// Whether the weight has the type of x or the arithmetic type, and can be read in vectors of up to 16 bytes.
inline bool weight_fits(const RotateParams& p, const Norm& norm, int64_t width) {
  const int64_t size = bytes_of(norm.weight_dtype), arithmetic = p.dtype == DType::kFloat64 ? 8 : 4;
  return (norm.weight_dtype == p.dtype || size == arithmetic) && norm.weight_stride == 1 &&
         aligned(norm.weight, std::min<int64_t>(width * size, 16));
}

// Whether the lanes of a head fit in a warp and can read the weights in vectors.
inline bool norm_fits(const RotateParams& p, int64_t width) {
  for (int t = 0; t < p.num_tensors; ++t) {
    if (sum_lanes(p.x[t].head_dim, width) > kSumLanes) return false;
    if (p.norm[t].weight && !weight_fits(p, p.norm[t], width)) return false;
  }
  return true;
}

// The largest absolute offset, in elements, that an axis of `count` elements contributes.
inline int64_t reach(int64_t count, int64_t stride) { return count ? (count - 1) * std::abs(stride) : 0; }

inline int64_t reach(const RotateParams& p, const RotatedTensor& x, const Strides& s) {
  return reach(p.batch, s.batch) + reach(p.seqlen, s.token) + reach(x.heads, s.head) + reach(x.head_dim, s.channel);
}

inline int64_t reach(const RotateParams& p, const Table& t) {
  return reach(p.batch, t.batch_stride) + reach(p.positions.rows, t.row_stride) + reach(p.table_heads, t.head_stride) +
         reach(p.pairs, t.pair_stride);
}

inline int64_t reach_of_positions(const RotateParams& p) {
  const Positions& at = p.positions;
  return at.positions.data ? reach(p.batch, at.positions_batch_stride) + reach(p.seqlen, at.positions_token_stride) : 0;
}

// Whether all indices and offsets of the call fit in the 32 bits of RotateArguments<int>.
inline bool compact(const RotateParams& p, int64_t width) {
  constexpr int64_t kEnd = int64_t{1} << 31;
  if (p.source != Source::kFrequencies) {
    if (p.positions.rows >= kEnd || reach_of_positions(p) >= kEnd) return false;
    if (std::max(reach(p, p.cos), reach(p, p.sin)) >= kEnd) return false;
  }
  int64_t threads = 0;  // of all tensors; with so many, each thread has the maximum number of heads
  for (int t = 0; t < p.num_tensors; ++t) {
    const RotatedTensor& x = p.x[t];
    if (std::max(reach(p, x, x.in_stride), reach(p, x, x.out_stride)) / width >= kEnd) return false;
    const int64_t heads = quotient_up(x.heads, p.table_heads == 1 ? kMostHeadsPerThread : 1);
    threads += p.batch * p.seqlen * head_threads(p, t, width) * heads;
  }
  return threads < kEnd / 2;  // the last round may be half empty
}

// Bytes per access, widest first. A call that fits neither accesses one element at a time.
constexpr int64_t kAccessBytes[] = {16, 4};

inline int64_t width_of(const RotateParams& p) {
  for (const int64_t bytes : kAccessBytes) {
    const int64_t width = bytes / bytes_of(p.dtype);
    if (width > 1 && fits(p, width) && compact(p, width)) return width;
  }
  return 1;
}

// Elements per access in a call with norms: 16 bytes of them, or one.
inline int64_t norm_width_of(const RotateParams& p) {
  const int64_t width = kAccessBytes[0] / bytes_of(p.dtype);
  return norm_fits(p, width) && fits(p, width) && compact(p, width) ? width : 1;
}

}  // namespace rope::cuda
