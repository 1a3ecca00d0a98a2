// Divides the tokens of a call among threads.
#pragma once

#include <omp.h>

#include <cstdint>

#include "core/integer.h"
#include "cpu/vector.h"

namespace rope::cpu {
namespace {

// Calls function(batch, token, thread) for all tokens, on at most `threads` threads; thread < threads. The pragma needs
// num_threads: a bare `omp parallel` ignores torch.set_num_threads() in threads that torch did not start.
template <class Function>
void for_each_token(int64_t batch, int64_t seqlen, int64_t threads, const Function& function) {
  const int64_t tokens = batch * seqlen;
  if (tokens == 0) return;
  if (threads > tokens) threads = tokens;
  const auto share = [&](int64_t begin, int64_t end, int64_t thread) {
    for (int64_t i = begin, b = begin / seqlen, s = begin % seqlen; i < end; ++i) {
      function(b, s, thread);
      if (++s == seqlen) ++b, s = 0;
    }
    fence_non_temporal_stores();
  };
  if (threads <= 1 || omp_in_parallel()) return share(0, tokens, 0);
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    const int64_t running = omp_get_num_threads(), thread = omp_get_thread_num();
    share(tokens * thread / running, tokens * (thread + 1) / running, thread);
  }
}

// Scratch memory of each thread of a call: `count` numbers, aligned to vectors, uninitialized.
template <class A>
class PerThread {
 public:
  PerThread(int64_t count, int64_t threads)
      : stride_(round_up(count, kAligned)),
        data_(count ? new A[stride_ * (threads > 1 ? threads : 1) + kAligned] : nullptr) {}
  ~PerThread() { delete[] data_; }
  PerThread(const PerThread&) = delete;

  A* of(int64_t thread) const {
    const auto address = reinterpret_cast<intptr_t>(data_);
    return reinterpret_cast<A*>(round_up(address, kBytes)) + thread * stride_;
  }

 private:
  static constexpr int64_t kBytes = 64;  // of the largest vector
  static constexpr int64_t kAligned = kBytes / sizeof(A);
  int64_t stride_;
  A* data_;
};

}  // namespace
}  // namespace rope::cpu
