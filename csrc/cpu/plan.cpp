#include "cpu/plan.h"

#include <pthread.h>
#include <unistd.h>

namespace rope::cpu {
namespace {

// Bytes of x that occupy a thread longer than it takes to wake it. 0.3 MiB, a token of 32 sequences, on two threads
// instead of one: 27 -> 22 us in place, and no change for threads that were asleep.
constexpr int64_t kGrainBytes = 128 * 1024;

// In a forked child the threads of the parent are gone, but the OpenMP runtime waits for them (PyTorch's own ops hang
// there with more than one thread): the child does all by itself. Registered at load: the first call may come after the
// fork.
bool forked = false;
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

// Payload below which rows are in a cache anyway.
constexpr int64_t kPrefetchBytes = 1 << 20;

// Bytes ahead, within memory that is read from end to end. In place at DRAM size, Xeon, 2 threads, in copies: 0.7 to
// 0.9 without any prefetch, 0.5 to 0.6 with it; L3 0.6 -> 0.35 (fp32), fused qkv 1.0 -> 0.7.
constexpr int64_t kPrefetchAhead = 4096;

// The same for bhsd memory, where each head is such a run, all read in turns: 1.2 -> 0.55 (bfloat16). As good as 2048,
// and better than tokens in blocks with the next head's block prefetched (0.78).
constexpr int64_t kPrefetchAheadOfHead = 1024;

// Results of more bytes go past the caches: 0.6 to 0.8 copies instead of 1.0 to 1.4 (2.5 MiB to 160 MiB). Less stay,
// for whoever reads them next: written past an L2 that holds them they take 1.3 to 1.9 times as long.
constexpr int64_t kNonTemporalBytes = 16 << 20;

// Bytes, of any instruction set.
constexpr int64_t kLargestVector = 64;

// Of all tensors of a call.
Access access_of_all(const Params& p) {
  const auto scaled = [](Pairing pairing, int64_t stride) {
    return Pairing{pairing.step * stride, pairing.partner * stride};
  };
  Access common{};
  for (int t = 0; t < p.num_tensors; ++t) {
    const Access access = access_of(scaled(p.pairing, p.x[t].in_stride.channel));
    if (access != access_of(scaled(p.out_pairing, p.x[t].out_stride.channel))) return Access::kAny;
    if (t && access != common) return Access::kAny;
    common = access;
  }
  return common;
}

int64_t bytes_of_x(const Params& p) {
  int64_t elements = 0;
  for (int t = 0; t < p.num_tensors; ++t) elements += p.x[t].heads * p.x[t].head_dim;
  return elements * p.batch * p.seqlen * bytes_of(p.dtype);
}

const int64_t non_temporal_bytes = [] {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  const int64_t half_of_l3 = sysconf(_SC_LEVEL3_CACHE_SIZE) / 2;
  if (half_of_l3 > 0 && half_of_l3 < kNonTemporalBytes) return half_of_l3;
#endif
  return kNonTemporalBytes;
}();

// Whether every vector written to x.out begins at a multiple of its size.
bool aligned(const Params& p, const RotatedTensor& x) {
  const Strides& s = x.out_stride;
  const int64_t partner = p.out_pairing.step == 1 ? p.out_pairing.partner : 0;
  const int64_t steps = s.batch | s.token | s.head | p.rotary_offset | partner;
  return ((steps * bytes_of(p.dtype)) | reinterpret_cast<intptr_t>(x.out)) % kLargestVector == 0;
}

}  // namespace

Plan plan_of(const Params& p) {
  const int64_t bytes = bytes_of_x(p), size = bytes_of(p.dtype);
  Plan plan{};
  plan.access = access_of_all(p);
  plan.threads = forked ? 1 : bytes / kGrainBytes;
  // A new page has just been filled with zeros, in the cache.
  plan.non_temporal = !p.fresh && plan.access != Access::kAny && bytes > non_temporal_bytes;
  for (int t = 0; t < p.num_tensors; ++t) {
    const RotatedTensor& x = p.x[t];
    const Strides& s = x.in_stride;
    plan.non_temporal = plan.non_temporal && x.in != x.out && aligned(p, x);
    if (bytes < kPrefetchBytes) continue;
    const int64_t next_token = p.seqlen > 1 ? s.token : s.batch;
    if (x.heads > 1 && p.seqlen > 1 && s.head > s.token) {
      plan.prefetch[t] = kPrefetchAheadOfHead;
    } else if (next_token != (x.heads > 1 ? x.heads * s.head : x.head_dim)) {
      plan.prefetch[t] = next_token * size;  // the same head of the next token: other tensors lie between the two
    } else {
      plan.prefetch[t] = kPrefetchAhead;
    }
  }
  return plan;
}

}  // namespace rope::cpu
