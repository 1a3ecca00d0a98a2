#include "cuda/plan.h"

#include <algorithm>

#include "core/integer.h"

namespace rope::cuda {
namespace {

// Bytes of one access, widest first. A call that fits neither accesses element by element.
constexpr int64_t kAccessBytes[] = {16, 4};

// Threads that a multiprocessor holds at 80 registers each: three blocks, the launch bound of rotate_kernel<kPerPair>.
constexpr int64_t kResidentThreads = 3 * kBlock;

// A thread takes two heads (both in flight) or four, and reads their cos and sin once, where that leaves at least
// kRounds full waves of threads.
constexpr int64_t kRounds = 4;
constexpr int64_t kHeadsPerThread = 4;

// Indices below this can be doubled, or added to one another, in 32 bits.
constexpr int64_t kLargest = 1 << 30;

bool multiple(int64_t n, int64_t of) { return n % of == 0; }

bool aligned(const void* data, int64_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

bool is_interleaved(Pairing pairing) { return pairing.step == 2 && pairing.partner == 1; }

bool rows_aligned(const RotateParams& p, const void* data, const Strides& s, int64_t width) {
  return aligned(data, width * bytes_of(p.dtype)) && s.channel == 1 && multiple(s.batch, width) &&
         multiple(s.token, width) && multiple(s.head, width);
}

bool pairing_fits(Pairing pairing, int64_t width) {
  return is_interleaved(pairing) || (pairing.step == 1 && multiple(pairing.partner, width));
}

// Whether all of x can be read and written `width` elements at a time.
bool fits(const RotateParams& p, int64_t width) {
  if (!pairing_fits(p.pairing, width) || !pairing_fits(p.out_pairing, width)) return false;
  if (!multiple(p.pairs, width) || !multiple(p.rotary_offset, width)) return false;
  for (int t = 0; t < p.num_tensors; ++t) {
    const RotatedTensor& x = p.x[t];
    if (!rows_aligned(p, x.in, x.in_stride, width) || !rows_aligned(p, x.out, x.out_stride, width)) return false;
    if (x.in != x.out && !multiple(x.head_dim, width)) return false;
  }
  return true;
}

int64_t vector_of(const RotateParams& p) {
  for (const int64_t bytes : kAccessBytes) {
    const int64_t width = bytes / bytes_of(p.dtype);
    if (width > 1 && fits(p, width)) return width;
  }
  return 1;
}

Units units_of(Pairing pairing, int64_t vector) {
  const bool interleaved = vector > 1 && is_interleaved(pairing);
  return {static_cast<int>(vector * pairing.step), static_cast<int>(interleaved ? vector : pairing.partner),
          interleaved};
}

// Whether the entries of `vector` pairs can be read up to 16 bytes at a time.
bool table_aligned(const RotateParams& p, const Table& t, int64_t vector) {
  const int64_t size = bytes_of(p.table_dtype), width = std::min(vector, 16 / size);
  return t.pair_stride == 1 && aligned(t.first, width * size) && aligned(t.second, width * size) &&
         multiple(t.batch_stride, width) && multiple(t.row_stride, width) && multiple(t.head_stride, width);
}

}  // namespace

Plan plan_of(const RotateParams& p, int multiprocessors) {
  const int64_t vector = vector_of(p), tokens = p.batch * p.seqlen;
  int64_t heads = 0, copied = 0, head_dim = 0;
  for (int t = 0; t < p.num_tensors; ++t) {
    heads += p.x[t].heads;
    head_dim = std::max(head_dim, p.x[t].head_dim);
    if (p.x[t].in != p.x[t].out) copied = std::max(copied, p.x[t].head_dim - 2 * p.pairs);
  }
  const int64_t rotated_units = p.pairs / vector, units = rotated_units + round_up(copied, 2 * vector) / (2 * vector);
  const int64_t work = tokens * units * heads;
  if (work == 0) return {};

  const int64_t rounds = work / (kRounds * kResidentThreads * multiprocessors);
  const int64_t heads_per_thread = rounds >= kHeadsPerThread ? kHeadsPerThread : rounds >= 2 ? 2 : 1;
  const int64_t head_threads_of_token = (heads - 1) / heads_per_thread + 1;
  // Little work is spread over all multiprocessors.
  const int64_t threads = std::clamp<int64_t>(round_up(work / multiprocessors, 32), 64, kBlock);
  const int64_t unit_threads = std::min(units, threads);
  const int64_t splits = (head_threads_of_token - 1) / std::max<int64_t>(threads / unit_threads, 1) + 1;
  const int64_t head_threads = (head_threads_of_token - 1) / splits + 1;
  const int64_t block_tokens = std::clamp<int64_t>(threads / (unit_threads * head_threads), 1, 64);  // blockDim.z <= 64
  const int64_t blocks = ((tokens - 1) / block_tokens + 1) * splits;
  const int64_t largest = std::max({p.batch, p.seqlen, heads, head_dim, blocks});

  Plan plan{};
  plan.vector = static_cast<int>(vector);
  plan.in = units_of(p.pairing, vector);
  plan.out = units_of(p.out_pairing, vector);
  plan.row_per_head = p.table_heads != 1;
  plan.table_vectors = vector > 1 && table_aligned(p, p.cos, vector) && table_aligned(p, p.sin, vector);
  plan.rotary_offset = static_cast<int>(p.rotary_offset);
  plan.rotary_dim = static_cast<int>(2 * p.pairs);
  plan.rotated_units = static_cast<int>(rotated_units);
  plan.units = static_cast<int>(units);
  plan.heads = static_cast<int>(heads);
  plan.splits = static_cast<int>(splits);
  plan.blocks = largest >= kLargest ? -1 : static_cast<int>(blocks);
  plan.unit_threads = static_cast<int>(unit_threads);
  plan.head_threads = static_cast<int>(head_threads);
  plan.tokens = static_cast<int>(block_tokens);
  return plan;
}

}  // namespace rope::cuda
