#include "cuda/plan.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "core/integer.h"

namespace rope::cuda {
namespace {

// Bytes of one access, widest first. A call that fits neither accesses element by element.
constexpr int64_t kAccessBytes[] = {16, 4};

// Threads that a multiprocessor holds at 72 registers each: seven blocks, the launch bound of rotate_kernel<kPerPair>.
constexpr int64_t kResidentThreads = 7 * kRotateBlock;

// A thread takes two heads (both in flight) or four, and finds its place and reads their cos and sin once, where that
// leaves more than one and a half waves of threads.
constexpr int64_t kHeadsPerThread = 4;
int64_t heads_per_thread(int64_t work, int64_t multiprocessors) {
  const int64_t most = 2 * work / (3 * kResidentThreads * multiprocessors);
  return most >= kHeadsPerThread ? kHeadsPerThread : most >= 2 ? 2 : 1;
}

// Numbers below this have 31 bits.
constexpr int64_t kCompact = int64_t{1} << 31;

bool multiple(int64_t n, int64_t of) { return n % of == 0; }

bool aligned(const void* data, int64_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

bool is_interleaved(Pairing pairing) { return pairing.step == 2 && pairing.partner == 1; }

// ---- the width of an access ----

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

// The largest offset, in elements and whatever its sign, at which an axis of `count` elements adds to others.
int64_t reach(int64_t count, int64_t stride) { return count ? (count - 1) * std::abs(stride) : 0; }

int64_t reach(const RotateParams& p, const RotatedTensor& x, const Strides& s) {
  return reach(p.batch, s.batch) + reach(p.seqlen, s.token) + reach(x.heads, s.head) + reach(x.head_dim, s.channel);
}

int64_t reach(const RotateParams& p, const Table& t) {
  return reach(p.batch, t.batch_stride) + reach(p.positions.rows, t.row_stride) + reach(p.table_heads, t.head_stride) +
         reach(p.pairs, t.pair_stride);
}

// Units of a head: those that are rotated, and those that are only copied, which in place are none.
int64_t rotated_units(const RotateParams& p, int64_t width) { return p.pairs / width; }
int64_t copied_accesses(const RotateParams& p, const RotatedTensor& x, int64_t width) {
  return x.in == x.out ? 0 : (x.head_dim - 2 * p.pairs) / width;
}
int64_t units(const RotateParams& p, const RotatedTensor& x, int64_t width) {
  return rotated_units(p, width) + quotient_up(copied_accesses(p, x, width), 2);
}

// Whether RotateArguments<int> can hold the call. The last round may have threads without work.
bool compact(const RotateParams& p, int64_t width) {
  if (p.source != Source::kFrequencies) {
    if (p.positions.rows >= kCompact) return false;
    if (std::max(reach(p, p.cos), reach(p, p.sin)) >= kCompact) return false;
    const Positions& at = p.positions;
    const int64_t positions = reach(p.batch, at.positions_batch_stride) + reach(p.seqlen, at.positions_token_stride);
    if (at.positions.data && positions >= kCompact) return false;
  }
  for (int t = 0; t < p.num_tensors; ++t) {
    const RotatedTensor& x = p.x[t];
    if (std::max(reach(p, x, x.in_stride), reach(p, x, x.out_stride)) / width >= kCompact) return false;
    if (p.batch * p.seqlen * units(p, x, width) * x.heads >= kCompact / 2) return false;
  }
  return true;
}

int64_t vector_of(const RotateParams& p) {
  for (const int64_t bytes : kAccessBytes) {
    const int64_t width = bytes / bytes_of(p.dtype);
    if (width > 1 && fits(p, width) && compact(p, width)) return width;
  }
  return 1;
}

// ---- the arguments of the kernel ----

// width: elements per access; channels are one access apart unless an access is one element.
template <class Int>
AccessStrides<Int> in_accesses(const Strides& s, int64_t width) {
  return {static_cast<Int>(s.batch / width), static_cast<Int>(s.token / width), static_cast<Int>(s.head / width),
          static_cast<Int>(width > 1 ? 1 : s.channel)};
}

template <class Int>
TableArguments<Int> table_arguments(const Table& t) {
  return {t.first,
          t.second,
          static_cast<Int>(t.batch_stride),
          static_cast<Int>(t.row_stride),
          static_cast<Int>(t.head_stride),
          static_cast<Int>(t.pair_stride)};
}

Units units_of(Pairing pairing, int64_t width) {
  if (width > 1 && is_interleaved(pairing)) return {2, 1};
  return {static_cast<int>(pairing.step), static_cast<int>(pairing.partner / width)};
}

// Whether the entries of `width` pairs can be read up to 16 bytes at a time.
bool table_aligned(const RotateParams& p, const Table& t, int64_t width) {
  const int64_t size = bytes_of(p.table_dtype), entries = std::min(width, 16 / size);
  return t.pair_stride == 1 && aligned(t.first, entries * size) && aligned(t.second, entries * size) &&
         multiple(t.batch_stride, entries) && multiple(t.row_stride, entries) && multiple(t.head_stride, entries);
}

bool alike(const Table& a, const Table& b) {
  return a.batch_stride == b.batch_stride && a.row_stride == b.row_stride && a.head_stride == b.head_stride;
}

Tables tables_of(const RotateParams& p, int64_t width) {
  const bool vectors =
      width > 1 && alike(p.cos, p.sin) && table_aligned(p, p.cos, width) && table_aligned(p, p.sin, width);
  const bool like_x = p.table_dtype == p.dtype && bytes_of(p.dtype) == 2;  // else the type of arithmetic is that of x
  if (vectors) return like_x ? Tables::kVectorsLikeX : Tables::kVectors;
  return like_x ? Tables::kStridedLikeX : Tables::kStrided;
}

Rows rows_of(const Positions& p, int64_t seqlen) {
  if (p.offsets.data || p.cu_seqlens.data) return Rows::kAny;
  if (p.positions.data) return Rows::kPosition;
  return p.offset >= 0 && p.offset <= p.rows - seqlen ? Rows::kToken : Rows::kAny;
}

int64_t slots(const RotatedTensor& x, const Plan& plan) { return quotient_up(x.heads, plan.heads_per_thread); }

// Threads that rotate one token of x.
int64_t threads_of_token(const RotateParams& p, const RotatedTensor& x, const Plan& plan) {
  return units(p, x, plan.vector) * slots(x, plan);
}

// Blocks of a round.
int64_t blocks(const RotateParams& p, const RotatedTensor& x, const Plan& plan) {
  return quotient_up(plan.round_tokens * threads_of_token(p, x, plan), plan.threads);
}

// The fewest tokens whose threads fill blocks, in each tensor; more where the rounds would be too many.
int64_t round_tokens(const RotateParams& p, const Plan& plan) {
  int64_t fill = 1;  // a divisor of plan.threads
  for (int t = 0; t < p.num_tensors; ++t) {
    fill = std::lcm(fill, plan.threads / std::gcd(plan.threads, threads_of_token(p, p.x[t], plan)));
  }
  const int64_t tokens = p.batch * p.seqlen;
  return std::min(round_up(quotient_up(tokens, kMostRounds), fill), tokens);
}

template <class Int>
Section<Int> section_of(const RotateParams& p, const RotatedTensor& x, const Plan& plan) {
  Section<Int> s{};
  s.in = x.in;
  s.out = x.out;
  s.threads = static_cast<Int>(blocks(p, x, plan) * plan.threads);
  s.heads = static_cast<int>(x.heads);
  s.units = divisor_of<Int>(units(p, x, plan.vector));
  s.slots = divisor_of<Int>(slots(x, plan));
  s.in_stride = in_accesses<Int>(x.in_stride, plan.vector);
  s.out_stride = in_accesses<Int>(x.out_stride, plan.vector);
  if (s.slots.by < s.heads) {
    s.in_step = s.in_stride.head * s.slots.by;
    s.out_step = s.out_stride.head * s.slots.by;
  }
  s.copied = static_cast<int>(copied_accesses(p, x, plan.vector));
  return s;
}

}  // namespace

bool too_large(const RotateParams& p) {
  int64_t largest = std::max(p.batch, p.seqlen);
  for (int t = 0; t < p.num_tensors; ++t) largest = std::max({largest, p.x[t].heads, p.x[t].head_dim});
  return largest >= int64_t{1} << 30;
}

Plan plan_of(const RotateParams& p, int multiprocessors) {
  const int64_t width = vector_of(p);
  int64_t work = 0;  // units, of all heads
  for (int t = 0; t < p.num_tensors; ++t) work += p.batch * p.seqlen * units(p, p.x[t], width) * p.x[t].heads;

  Plan plan{};
  plan.vector = static_cast<int>(width);
  plan.heads_per_thread = p.table_heads == 1 ? static_cast<int>(heads_per_thread(work, multiprocessors)) : 1;
  // Little work is spread over all multiprocessors.
  plan.threads = static_cast<int>(std::clamp<int64_t>(round_up(work / multiprocessors, 32), 64, kRotateBlock));
  if (work == 0) return plan;
  plan.round_tokens = round_tokens(p, plan);
  plan.rounds = quotient_up(p.batch * p.seqlen, plan.round_tokens);
  for (int t = 0; t < p.num_tensors; ++t) plan.blocks += blocks(p, p.x[t], plan);
  return plan;
}

template <class Int>
RotateArguments<Int> arguments_of(const RotateParams& p, const Plan& plan) {
  const int64_t width = plan.vector;
  RotateArguments<Int> a{};
  a.tokens = static_cast<Int>(p.batch * p.seqlen);
  a.seqlen = divisor_of<Int>(p.seqlen);
  a.rotated_units = static_cast<int>(rotated_units(p, width));
  a.rotary_offset = static_cast<int>(p.rotary_offset / width);
  a.rotary_accesses = static_cast<int>(2 * p.pairs / width);
  a.in = units_of(p.pairing, width);
  a.out = units_of(p.out_pairing, width);
  a.in_interleaved = width > 1 && is_interleaved(p.pairing);
  a.out_interleaved = width > 1 && is_interleaved(p.out_pairing);
  a.round_products = p.round_products;
  const bool other = p.round_products || p.pairing.step != p.out_pairing.step;
  a.rotating = other ? Rotating::kOther : a.in_interleaved ? Rotating::kWithin : Rotating::kAcross;
  a.negate_sin = p.negate_sin;
  a.positions = p.positions;
  if (p.source == Source::kFrequencies) {
    a.frequencies = p.frequencies;
  } else {
    a.rows = rows_of(p.positions, p.seqlen);
    if (a.rows == Rows::kToken) a.offset = static_cast<Int>(p.positions.offset);
    if (a.rows == Rows::kPosition) {
      a.positions_batch_stride = static_cast<Int>(p.positions.positions_batch_stride);
      a.positions_token_stride = static_cast<Int>(p.positions.positions_token_stride);
    }
    a.tables = tables_of(p, width);
    a.cos = table_arguments<Int>(p.cos);
    a.sin = table_arguments<Int>(p.sin);
  }
  Int first_thread = 0;
  for (int t = 0; t < kMaxTensors; ++t) {
    if (t < p.num_tensors) a.sections[t] = section_of<Int>(p, p.x[t], plan);
    a.sections[t].first_thread = first_thread;
    first_thread += a.sections[t].threads;
  }
  return a;
}

template RotateArguments<int> arguments_of<int>(const RotateParams&, const Plan&);
template RotateArguments<int64_t> arguments_of<int64_t>(const RotateParams&, const Plan&);

}  // namespace rope::cuda
