// The ops on CUDA tensors. Compiled wherever nvcc is found, even against a torch without CUDA.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <optional>

#include "bindings/errors.h"
#include "bindings/launch_errors.h"
#include "bindings/library.h"
#include "bindings/ops.h"
#include "bindings/output.h"
#include "cuda/kernels.h"

namespace rope {
namespace {

// torch's current stream of a device. The function is looked up at the first call, because a library that links to
// libtorch_cuda.so, which defines it, does not load with a torch without CUDA.
cuda::Stream current_stream(int device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const Function function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  if (!function) throw std::runtime_error("rope_ext found no aoti_torch_get_current_cuda_stream in torch");
  cuda::Stream stream;
  TORCH_ERROR_CODE_CHECK(function(device, &stream));
  return stream;
}

// The device and stream that a call launches on. While a Queue exists, the device of x is current.
class Queue {
 public:
  explicit Queue(const Tensor& x) : device(x.device_index()) {
    // torch's guard creates no context on the device that it restores.
    if (cuda::current_device() != device) guard_.emplace(device);
    stream = current_stream(device);
  }
  const int device;
  cuda::Stream stream;

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

// Whether an environment variable is set to anything but "" or 0.
bool is_set(const char* name) {
  const char* value = std::getenv(name);
  return value && std::strcmp(value, "") && std::strcmp(value, "0");
}

// A debug mode: one more kernel per call, which asserts that every position is in the table.
bool checks_positions() {
  static const bool wanted = is_set("ROPE_EXT_CHECK_POSITIONS");
  return wanted;
}

void check_launch(const char* error) {
  if (!error) return;
  if (!std::strcmp(error, "cudaErrorMemoryAllocation")) {  // loading a kernel, at its first launch, allocates memory
    raise(ErrorType::kOutOfMemory, text("rope_ext: CUDA out of memory. A kernel could not be loaded, ", error));
  }
  throw std::runtime_error(launch_error(error, is_set("CUDA_LAUNCH_BLOCKING"), checks_positions()));
}

// For kernels with one thread per entry of `argument`, which has this shape.
void check_launch(const char* error, const char* argument, std::initializer_list<int64_t> shape) {
  if (error == cuda::kTooLarge) bad_value(argument, "have at most 2^39 - 256 entries on a GPU", tuple_of(shape));
  check_launch(error);
}

void check_launch(const char* error, const RotateParams& p) {
  if (error != cuda::kTooLarge) return check_launch(error);
  int64_t heads = 0, head_dim = 0;
  for (int t = 0; t < p.num_tensors; ++t) {
    heads = std::max(heads, p.x[t].heads);
    head_dim = std::max(head_dim, p.x[t].head_dim);
  }
  bad_value("x", "have batch, seqlen, heads and head_dim below 2^30 on a GPU, and need fewer than 2^31 thread blocks",
            text("batch ", p.batch, ", seqlen ", p.seqlen, ", heads ", heads, ", head_dim ", head_dim));
}

void check_positions(const Tokens& p, const Queue& queue) {
  if (checks_positions()) check_launch(cuda::assert_positions(p, queue.stream), "positions", {p.batch, p.seqlen});
}

struct Cuda {
  static Tensor empty_like(const Tensor& x, bool*) { return rope::empty_like(x); }

  static void rotate(const RotateParams& p, const Tensor& x) {
    const Queue queue(x);
    if (p.source != Source::kFrequencies) check_positions(p, queue);
    check_launch(cuda::rotate(p, queue.device, queue.stream), p);
  }

  static void norm_grad(const NormGradParams& p, const Tensor& x) {
    const Queue queue(x);
    check_launch(cuda::norm_grad(p, queue.device, queue.stream), p);
  }

  static void table_grad(const TableGradParams& p, const Tensor& x) {
    check_launch(cuda::table_grad(p, Queue(x).stream), "cos", {p.table_batches, p.seqlen, p.table_heads, p.pairs});
  }

  static void cos_sin(const CosSinParams& p, const Tensor& x) {
    check_launch(cuda::cos_sin(p, Queue(x).stream), "cos", {p.batch, p.seqlen, p.heads, p.pairs});
  }

  static void revolutions(const RevolutionsParams& p, const Tensor& inv_freq) {
    check_launch(cuda::revolutions(p, Queue(inv_freq).stream), "inv_freq", {p.axes, p.heads, p.pairs});
  }

  static void table_rows(const Tokens& p, int64_t* rows, bool, const Tensor& x) {
    const Queue queue(x);
    check_positions(p, queue);
    check_launch(cuda::table_rows(p, rows, queue.stream), "positions", {p.batch, p.seqlen});
  }
};

[[maybe_unused]] const bool registered = register_kernels<Ops<Cuda>>("CUDA");

}  // namespace
}  // namespace rope

// The architectures that the kernels were compiled for, "8.0 9.0+PTX", and the version of the compiler, "13.0". For
// ctypes (rope_ext/_torch/library.py).
extern "C" __attribute__((visibility("default"))) const char* rope_ext_cuda_architectures() {
  return ROPE_CUDA_ARCHITECTURES;
}
extern "C" __attribute__((visibility("default"))) const char* rope_ext_cuda_version() { return ROPE_CUDA_VERSION; }
