// The thresholds of Plan, with the measurements behind them.
#include "cpu/plan.h"

#include <pthread.h>
#include <unistd.h>

namespace rope::cpu {
namespace {

// Minimum bytes of x per thread: less work finishes before another thread has woken up. For 0.3 MiB in place (a token
// of 32 sequences), one thread takes 27 us and two take 22 us; if the second was asleep, two take as long as one.
constexpr int64_t kGrainBytes = 128 * 1024;

// Minimum cos/sin entries per thread in cos_sin.
constexpr int64_t kGrainEntries = 16384;

// Whether this process is a forked child. The parent's threads do not exist there, but the OpenMP runtime waits for
// them (PyTorch's own ops hang with more than one thread), so everything runs on the calling thread. Registered when
// the library is loaded, because the first call may come after the fork.
bool forked = false;
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

// Below this size the data is already cached: do not prefetch.
constexpr int64_t kPrefetchBytes = 1 << 20;

// Prefetch distance in bytes for memory that is read sequentially. Prefetching reduces the time of a call in place,
// relative to a copy, on a Xeon with 2 threads: from 0.7 to 0.9 down to 0.5 to 0.6 from DRAM, from 0.6 to 0.35 from L3
// (fp32), from 1.0 to 0.7 for packed qkv.
constexpr int64_t kPrefetchAhead = 4096;

// Prefetch distance in bytes for bhsd memory, where each head is contiguous and the heads are read as parallel streams.
// Prefetching reduces the time relative to a copy from 1.2 to 0.55 (bfloat16). 2048 is as good; processing blocks of
// tokens and prefetching the next head's block is worse (0.78).
constexpr int64_t kPrefetchAheadOfHead = 1024;

// Larger results are written with non-temporal stores, which take 0.6 to 0.8 times as long as a copy; ordinary stores
// take 1.0 to 1.4 times as long (2.5 MiB to 160 MiB). Smaller results stay cached for their consumer: if they fit in
// the L2, non-temporal stores take 1.3 to 1.9 times as long as ordinary ones.
constexpr int64_t kNonTemporalBytes = 16 << 20;

// Size in bytes of the largest vector of any instruction set.
constexpr int64_t kLargestVector = 64;

// The access to rows whose channels are `s.channel` elements apart.
Access strided_access(Pairing pairing, const Strides& s) {
  return access_of(Pairing{pairing.step * s.channel, pairing.partner * s.channel});
}

Access common(Access a, Access b) { return a == b ? a : Access::kAny; }

template <class Params>
int64_t bytes_of_x(const Params& p) {
  int64_t elements = 0;
  for (int t = 0; t < p.num_tensors; ++t) elements += p.x[t].heads * p.x[t].head_dim;
  return elements * p.batch * p.seqlen * bytes_of(p.dtype);
}

int64_t threads_worth_waking(int64_t work, int64_t grain) { return forked ? 1 : work / grain; }

// The threshold in use: kNonTemporalBytes, but at most half of the L3 cache.
const int64_t non_temporal_bytes = [] {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  const int64_t half_of_l3 = sysconf(_SC_LEVEL3_CACHE_SIZE) / 2;
  if (half_of_l3 > 0 && half_of_l3 < kNonTemporalBytes) return half_of_l3;
#endif
  return kNonTemporalBytes;
}();

// Whether every vector store to x.out is aligned, for any instruction set.
bool aligned(const RotateParams& p, const RotatedTensor& x) {
  const Strides& s = x.out_stride;
  const int64_t partner = p.out_pairing.step == 1 ? p.out_pairing.partner : 0;
  const int64_t steps = s.batch | s.token | s.head | p.rotary_offset | partner;
  return ((steps * bytes_of(p.dtype)) | reinterpret_cast<intptr_t>(x.out)) % kLargestVector == 0;
}

// Plan::prefetch for rows of a tensor like x with strides s. bytes: the size of all x. whole_tokens: the kernel reads
// all heads of a token before it reads its rows again (norm.h), so that prefetching the next token is early enough; a
// distance of 4096 bytes takes 1.2 to 1.3 times as long.
int64_t prefetch_distance(const RotateParams& p, const RotatedTensor& x, const Strides& s, int64_t bytes,
                          bool whole_tokens) {
  if (bytes < kPrefetchBytes) return 0;
  if (x.heads > 1 && p.seqlen > 1 && s.head > s.token) return kPrefetchAheadOfHead;
  const int64_t next_token = p.seqlen > 1 ? s.token : s.batch;
  const bool contiguous = next_token == x.heads * x.head_dim;
  if (contiguous && !whole_tokens) return kPrefetchAhead;
  return next_token * bytes_of(p.dtype);  // the same head of the next token; other tensors may be in between
}

}  // namespace

Plan plan_of(const RotateParams& p) {
  const int64_t bytes = bytes_of_x(p);
  Plan plan{};
  plan.access = strided_access(p.pairing, p.x[0].in_stride);
  for (int t = 0; t < p.num_tensors; ++t) {
    plan.access = common(plan.access, strided_access(p.pairing, p.x[t].in_stride));
    plan.access = common(plan.access, strided_access(p.out_pairing, p.x[t].out_stride));
  }
  plan.threads = threads_worth_waking(bytes, kGrainBytes);
  // Not for unmapped pages: the operating system zeroes a page when it maps it, which leaves the page in cache.
  plan.non_temporal = !p.output_unmapped && plan.access != Access::kAny && bytes > non_temporal_bytes;
  for (int t = 0; t < p.num_tensors; ++t) {
    const RotatedTensor& x = p.x[t];
    plan.non_temporal = plan.non_temporal && x.in != x.out && aligned(p, x);
    plan.prefetch[t] = prefetch_distance(p, x, x.in_stride, bytes, p.norm[t].weight != nullptr);
  }
  return plan;
}

Plan plan_of(const NormGradParams& p) {
  Plan plan = plan_of(static_cast<const RotateParams&>(p));
  const int64_t bytes = bytes_of_x(p);
  for (int t = 0; t < p.num_tensors; ++t) {
    plan.prefetch_input[t] = prefetch_distance(p, p.x[t], p.of_norm[t].x_stride, bytes, true);
  }
  return plan;
}

Plan plan_of(const TableGradParams& p) {
  Plan plan{};
  plan.access = strided_access(p.pairing, p.x[0].x_stride);
  for (int t = 0; t < p.num_tensors; ++t) {
    plan.access = common(plan.access, strided_access(p.pairing, p.x[t].x_stride));
    plan.access = common(plan.access, strided_access(p.out_pairing, p.x[t].grad_stride));
  }
  plan.threads = threads_worth_waking(bytes_of_x(p), kGrainBytes);
  return plan;
}

int64_t threads_for(const CosSinParams& p) {
  return threads_worth_waking(p.batch * p.seqlen * p.heads * p.pairs, kGrainEntries);
}

}  // namespace rope::cpu
