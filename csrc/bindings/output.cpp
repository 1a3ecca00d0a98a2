// Allocates results: torch's allocator, the output pool, huge pages.
#include "bindings/output.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>
#include <torch/csrc/stable/ops.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iterator>
#include <map>
#include <mutex>

#include "bindings/errors.h"
#include "bindings/overlap.h"
#include "core/integer.h"

namespace rope {
namespace {

constexpr int64_t kHugePage = 2 << 20;

// Minimum size in bytes of a result in huge pages. malloc rarely returns smaller blocks to the system, and a huge page
// around one may hold other data.
constexpr int64_t kHugeBytes = 2 * kHugePage;

// Minimum size in bytes of a result from the pool.
constexpr int64_t kPooledBytes = 1 << 20;

// More elements than any allocation can hold; only an expanded x has so many.
constexpr int64_t kMostElements = int64_t{1} << 56;

// All state of the CPU code is initialized when the library is loaded. A function-local static is initialized at the
// first call, behind a lock: if another thread forked meanwhile, the lock would stay held in the child.
const bool huge_pages_wanted = [] {
  const char* value = std::getenv("ROPE_EXT_HUGEPAGES");
  return !value || std::strcmp(value, "0");
}();

[[maybe_unused]] const intptr_t page = sysconf(_SC_PAGESIZE);

// Whether the page at this address is mapped; true if the system cannot tell.
bool resident(char* address) {
#if defined(__linux__)
  unsigned char in_core = 0;
  return mincore(address - reinterpret_cast<intptr_t>(address) % page, 1, &in_core) || in_core & 1;
#else
  (void)address;
  return true;
#endif
}

void ask_for_huge_pages(char* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  if (!huge_pages_wanted) return;
  char* begin = data + (kHugePage - reinterpret_cast<intptr_t>(data) % kHugePage) % kHugePage;
  const int64_t whole = (data + bytes - begin) / kHugePage * kHugePage;
  if (whole > 0) madvise(begin, whole, MADV_HUGEPAGE);  // advisory; failure costs only speed
#else
  (void)data, (void)bytes;
#endif
}

// Caches the memory of freed results, by size, for later results of the same size.
class Pool {
 public:
  bool on() const { return max_bytes_ > 0; }
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

  // Returns `bytes` bytes aligned to kHugePage, or null if the system is out of memory. bytes: a multiple of kHugePage.
  char* take(int64_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = free_.find(bytes);
      if (found != free_.end()) {
        char* data = found->second;
        free_.erase(found);
        free_bytes_ -= bytes;
        return data;
      }
    }
    // Maps one huge page more than needed, and unmaps what is outside the aligned part.
    void* mapped = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    char* begin = static_cast<char*>(mapped);
    char* data = begin + (kHugePage - reinterpret_cast<intptr_t>(begin) % kHugePage) % kHugePage;
    if (data > begin) munmap(begin, data - begin);
    if (data < begin + kHugePage) munmap(data + bytes, begin + kHugePage - data);
    return data;
  }

  void give(char* data, int64_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (free_bytes_ + bytes <= max_bytes_) {
        free_.emplace(bytes, data);
        free_bytes_ += bytes;
        return;
      }
    }
    munmap(data, bytes);
  }

  void resize(int64_t max_bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    max_bytes_ = max_bytes;
    while (free_bytes_ > max_bytes) {
      const auto largest = std::prev(free_.end());
      munmap(largest->second, largest->first);
      free_bytes_ -= largest->first;
      free_.erase(largest);
    }
  }

 private:
  std::mutex mutex_;
  std::multimap<int64_t, char*> free_;  // keys: bytes
  int64_t free_bytes_ = 0;
  std::atomic<int64_t> max_bytes_{0};
};

// The pool is never destroyed, because results may outlive every static object.
Pool& pool = *new Pool;

// fork() waits for the lock; otherwise the child could inherit it held by a thread that does not exist there.
[[maybe_unused]] const int registered =
    pthread_atfork([] { pool.lock(); }, [] { pool.unlock(); }, [] { pool.unlock(); });

// Whether x is non-overlapping and dense: torch.empty_like(x) then has the strides of x.
bool dense(const Tensor& x) {
  const auto sizes = x.sizes(), strides = x.strides();
  uint64_t expected = 1;  // unsigned: it may wrap where x has no elements
  int64_t left = 0;
  for (const int64_t size : sizes) left += size != 1;
  for (bool found = true; left && found; --left) {
    found = false;
    for (size_t i = 0; i < sizes.size() && !found; ++i) {
      if (sizes[i] != 1 && static_cast<uint64_t>(strides[i]) == expected) {
        expected *= sizes[i];
        found = true;
      }
    }
    if (!found) return false;
  }
  return true;
}

// Whether the strides of x descend, with the longer axis first among equal strides: torch.empty_like(x) is then
// contiguous even if x is not dense, such as a slice of packed q, k, v. For other tensors torch preserves the memory
// order of the axes, and for tensors without elements all strides. x must have at least one axis.
bool in_order(const Tensor& x) {
  const int64_t last = x.dim() - 1;
  for (int64_t i = 0; i < last; ++i) {
    if (x.stride(i) < x.stride(i + 1) || (x.stride(i) == x.stride(i + 1) && x.size(i) < x.size(i + 1))) return false;
  }
  return x.stride(last) > 0 && !x.empty();
}

AtenTensorHandle empty_strided(const Tensor& like, IntHeaderOnlyArrayRef sizes, const int64_t* strides, int32_t dtype) {
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides, dtype, like.device_type(),
                                                  like.device_index(), &made));
  return made;
}

Tensor empty_contiguous(const Tensor& like, IntHeaderOnlyArrayRef sizes, int32_t dtype) {
  int64_t strides[kMaxRank];
  uint64_t expected = 1;  // unsigned: wraps for huge sizes, whose number of elements torch rejects
  for (size_t axis = sizes.size(); axis-- > 0;) {
    strides[axis] = static_cast<int64_t>(expected);
    expected *= std::max<int64_t>(sizes[axis], 1);
  }
  return Tensor(empty_strided(like, sizes, strides, dtype));
}

// torch's message for the last error of its C API on this thread; null before torch 2.13.
const char* message_of_torch() {
  using Function = const char* (*)();
  const auto function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace"));
  return function ? function() : nullptr;
}

// Calls `allocate`, and raises kOutOfMemory if it fails: torch's C API loses the type of the error, which
// rope_ext/_torch/errors.py restores.
template <class Allocate>
Tensor allocated(const Allocate& allocate) {
  try {
    return allocate();
  } catch (const std::exception& error) {
    const char* message = message_of_torch();
    raise(ErrorType::kOutOfMemory, text("rope_ext: out of memory for a result: ", message ? message : error.what()));
  }
}

}  // namespace

Tensor empty_like(const Tensor& x) {
  return allocated([&] {
    if (dense(x)) return Tensor(empty_strided(x, x.sizes(), x.strides().data(), x.dtype()), x);
    return in_order(x) ? empty_contiguous(x, x.sizes(), x.dtype()) : Tensor(torch::stable::empty_like(x.stable()));
  });
}

Tensor new_empty(const Tensor& x, std::initializer_list<int64_t> sizes, int32_t dtype) {
  return allocated([&] { return empty_contiguous(x, {sizes.begin(), sizes.size()}, dtype); });
}

namespace {

Tensor pooled(const Tensor& x, int64_t bytes) {
  const int64_t rounded = round_up(bytes, kHugePage);
  char* data = pool.take(rounded);
  if (!data) return empty_like(x);
  const torch::stable::Tensor stable = x.stable();
  const auto like = dense(x) ? stable : torch::stable::empty_like(stable);  // for its strides
  return Tensor(torch::stable::from_blob(data, like.sizes(), like.strides(), like.device(), like.scalar_type(),
                                         [rounded](void* freed) { pool.give(static_cast<char*>(freed), rounded); }));
}

}  // namespace

Tensor empty_like_output(const Tensor& x, bool* unmapped) {
  const int64_t elements = x.numel();
  if (elements > kMostElements) return empty_like(x);  // torch raises
  const int64_t bytes = elements * x.element_size();
  Tensor out = bytes >= kPooledBytes && pool.on() ? pooled(x, bytes) : empty_like(x);
  if (bytes >= kHugeBytes) {
    char* data = static_cast<char*>(out.mutable_data_ptr());
    if (!resident(data + bytes / 2)) {
      *unmapped = true;
      ask_for_huge_pages(data, bytes);
    }
  }
  return out;
}

}  // namespace rope

void rope_ext_set_output_pool(int64_t max_bytes) { rope::pool.resize(max_bytes); }
