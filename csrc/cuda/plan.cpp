// Computes plans and kernel arguments; measurements and hardware limits behind the choices are next to them.
#include "cuda/plan.h"

#include <algorithm>
#include <numeric>

#include "core/integer.h"
#include "cuda/width.h"

namespace rope::cuda {
namespace {

// Resident threads of a multiprocessor at 72 registers each: seven blocks, the launch bound of rotate_kernel<kPerPair>.
constexpr int64_t kResidentThreads = 7 * kRotateBlock;

// Two or four heads of a thread share the computation of indices and the loads of cos and sin. Below one and a half
// waves of resident threads, more threads are preferred.
int heads_per_thread(int64_t units, int64_t multiprocessors) {
  const int64_t most = 2 * units / (3 * kResidentThreads * multiprocessors);
  return most >= kMostHeadsPerThread ? kMostHeadsPerThread : most >= 2 ? 2 : 1;
}

// ---- the arguments of the kernel ----

// width: elements per access. The channel stride is 1 unless an access is one element.
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

UnitPairing unit_pairing_of(Pairing pairing, int64_t width) {
  if (width > 1 && is_interleaved(pairing)) return {2, 1};  // all pairs of a unit are neighbors
  return {static_cast<int>(pairing.step), static_cast<int>(pairing.partner / width)};
}

// Whether the entries of `width` pairs can be read in vectors of up to 16 bytes.
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
  const bool like_x = p.table_dtype == p.dtype && bytes_of(p.dtype) == 2;  // else the arithmetic type is that of x
  if (vectors) return like_x ? Tables::kVectorsLikeX : Tables::kVectors;
  return like_x ? Tables::kStridedLikeX : Tables::kStrided;
}

Rows rows_of(const Positions& p, int64_t seqlen) {
  if (p.offsets.data || p.cu_seqlens.data) return Rows::kAny;
  if (p.positions.data) return Rows::kPosition;
  return p.offset >= 0 && p.offset <= p.rows - seqlen ? Rows::kToken : Rows::kAny;
}

int64_t head_step(const RotatedTensor& x, const Plan& plan) { return quotient_up(x.heads, plan.heads_per_thread); }

// Threads that rotate one token of tensor t.
int64_t threads_of_token(const RotateParams& p, int t, const Plan& plan) {
  return head_threads(p, t, plan.width) * head_step(p.x[t], plan);
}

// Blocks of a round for tensor t.
int64_t blocks(const RotateParams& p, int t, const Plan& plan) {
  return quotient_up(plan.round_tokens * threads_of_token(p, t, plan), plan.threads);
}

// The tokens of a round: the fewest whose threads fill whole blocks in every tensor, or more if there would be more
// than kMostRounds rounds.
int64_t round_tokens(const RotateParams& p, const Plan& plan) {
  int64_t fill = 1;  // a divisor of plan.threads
  for (int t = 0; t < p.num_tensors; ++t) {
    fill = std::lcm(fill, plan.threads / std::gcd(plan.threads, threads_of_token(p, t, plan)));
  }
  const int64_t tokens = p.batch * p.seqlen;
  return std::min(round_up(quotient_up(tokens, kMostRounds), fill), tokens);
}

template <class Int>
Section<Int> make_section(const RotateParams& p, int t, const Plan& plan) {
  const RotatedTensor& x = p.x[t];
  Section<Int> s{};
  s.in = x.in;
  s.out = x.out;
  s.threads = static_cast<Int>(blocks(p, t, plan) * plan.threads);
  s.heads = static_cast<int>(x.heads);
  s.units = divisor_of<Int>(head_threads(p, t, plan.width));
  s.head_step = divisor_of<Int>(head_step(x, plan));
  s.in_stride = in_accesses<Int>(x.in_stride, plan.width);
  s.out_stride = in_accesses<Int>(x.out_stride, plan.width);
  if (s.head_step.by < s.heads) {
    s.in_step = s.in_stride.head * s.head_step.by;
    s.out_step = s.out_stride.head * s.head_step.by;
  }
  s.copied = static_cast<int>(num_copied(p, t, plan.width));
  return s;
}

}  // namespace

bool too_large(const RotateParams& p) {
  int64_t largest = std::max(p.batch, p.seqlen);
  for (int t = 0; t < p.num_tensors; ++t) largest = std::max({largest, p.x[t].heads, p.x[t].head_dim});
  return largest >= int64_t{1} << 30;
}

Plan plan_of(const RotateParams& p, int multiprocessors) {
  const int64_t width = has_norm(p) ? norm_width_of(p) : width_of(p);
  int64_t all_units = 0;  // of all tokens and heads
  for (int t = 0; t < p.num_tensors; ++t) all_units += p.batch * p.seqlen * head_threads(p, t, width) * p.x[t].heads;

  Plan plan{};
  plan.width = static_cast<int>(width);
  plan.heads_per_thread = p.table_heads == 1 ? heads_per_thread(all_units, multiprocessors) : 1;
  // Small calls get smaller blocks, so that they occupy all multiprocessors.
  plan.threads = static_cast<int>(std::clamp<int64_t>(round_up(all_units / multiprocessors, 32), 64, kRotateBlock));
  if (all_units == 0) return plan;
  plan.round_tokens = round_tokens(p, plan);
  plan.rounds = quotient_up(p.batch * p.seqlen, plan.round_tokens);
  for (int t = 0; t < p.num_tensors; ++t) plan.blocks += blocks(p, t, plan);
  return plan;
}

template <class Int>
RotateArguments<Int> arguments_of(const RotateParams& p, const Plan& plan) {
  const int64_t width = plan.width;
  RotateArguments<Int> a{};
  a.tokens = static_cast<Int>(p.batch * p.seqlen);
  a.seqlen = divisor_of<Int>(p.seqlen);
  a.rotated_units = static_cast<int>(rotated_units(p, width));
  a.rotary_offset = static_cast<int>(p.rotary_offset / width);
  a.rotary_accesses = static_cast<int>(2 * p.pairs / width);
  a.in = unit_pairing_of(p.pairing, width);
  a.out = unit_pairing_of(p.out_pairing, width);
  a.in_interleaved = width > 1 && is_interleaved(p.pairing);
  a.out_interleaved = width > 1 && is_interleaved(p.out_pairing);
  a.round_products = p.round_products;
  const bool other = p.round_products || p.pairing.step != p.out_pairing.step;
  a.rotating = other ? Rotating::kOther : a.in_interleaved ? Rotating::kWithin : Rotating::kAcross;
  a.unit_pairs = static_cast<int>(width);
  a.second_run = static_cast<int>(quotient_up(width, 2));
  if (a.rotating == Rotating::kWithin) {
    a.in = a.out = {1, a.rotated_units};
    a.unit_pairs = static_cast<int>(width / 2);
    a.second_run = static_cast<int>(p.pairs / 2);
  }
  a.negate_sin = p.negate_sin;
  a.positions = p.positions;
  if (p.source == Source::kFrequencies) {
    a.frequencies = p.frequencies;
  } else {
    a.rows = rows_of(p.positions, p.seqlen);
    // Narrows only values that fit.
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
    if (t < p.num_tensors) a.sections[t] = make_section<Int>(p, t, plan);
    a.sections[t].first_thread = first_thread;
    first_thread += a.sections[t].threads;
  }
  return a;
}

template RotateArguments<int> arguments_of<int>(const RotateParams&, const Plan&);
template RotateArguments<int64_t> arguments_of<int64_t>(const RotateParams&, const Plan&);

}  // namespace rope::cuda
