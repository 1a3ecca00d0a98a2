// The ops on CUDA tensors. Compiled wherever nvcc is found, even for a torch without CUDA.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <cstdlib>
#include <cstring>
#include <optional>

#include "bindings/errors.h"
#include "bindings/library.h"
#include "bindings/ops.h"
#include "bindings/output.h"
#include "cuda/kernels.h"

namespace rope {
namespace {

// torch's current stream of a device. The function is looked up at the first call: linked to libtorch_cuda.so, which
// defines it, this library would not load beside a torch without CUDA.
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

// The device and stream that a call launches on. While a Queue lives, the device of x is the current one.
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

// What the user can do about an error of the CUDA runtime.
const char* advice(const char* error) {
  if (!std::strcmp(error, "cudaErrorNoKernelImageForDevice")) {
    return ": built for architectures " ROPE_CUDA_ARCHITECTURES
           "; set TORCH_CUDA_ARCH_LIST to that of this GPU and "
           "rebuild: pip install --no-build-isolation --no-deps --force-reinstall rope_ext";
  }
  if (!std::strcmp(error, "cudaErrorInsufficientDriver")) {
    return ": built with CUDA " ROPE_CUDA_VERSION
           ", for which the GPU's driver is too old; update it, or set CUDA_HOME to "
           "an older CUDA and rebuild: pip install --no-build-isolation --no-deps --force-reinstall rope_ext";
  }
  return "";
}

void check_launch(const char* error) {
  if (!error) return;
  if (!std::strcmp(error, "cudaErrorMemoryAllocation")) {  // a kernel is loaded at its first launch
    raise(ErrorType::kOutOfMemory, text("rope_ext: CUDA out of memory. No room for a kernel, ", error));
  }
  if (error == cuda::kTooLarge) bad_value("x", "have batch, seqlen, heads and head_dim below 2^30 on a GPU", error);
  throw std::runtime_error(text("rope_ext could not launch a CUDA kernel, ", error, advice(error)));
}

// A debug mode: one more kernel per call, which fails an assert at a position outside the table.
bool checks_positions() {
  static const bool wanted = [] {
    const char* value = std::getenv("ROPE_EXT_CHECK_POSITIONS");
    return value && std::strcmp(value, "") && std::strcmp(value, "0");
  }();
  return wanted;
}

void check_positions(const Tokens& p, const Queue& queue) {
  if (checks_positions()) check_launch(cuda::assert_positions(p, queue.stream));
}

struct Cuda {
  static Tensor empty_like(const Tensor& x, bool*) { return rope::empty_like(x); }

  static void rotate(const RotateParams& p, const Tensor& x) {
    const Queue queue(x);
    if (p.source != Source::kFrequencies) check_positions(p, queue);
    check_launch(cuda::rotate(p, queue.device, queue.stream));
  }

  static void table_grad(const TableGradParams& p, const Tensor& x) {
    check_launch(cuda::table_grad(p, Queue(x).stream));
  }

  static void cos_sin(const CosSinParams& p, const Tensor& x) { check_launch(cuda::cos_sin(p, Queue(x).stream)); }

  static void revolutions(const RevolutionsParams& p, const Tensor& inv_freq) {
    check_launch(cuda::revolutions(p, Queue(inv_freq).stream));
  }

  static void table_rows(const Tokens& p, int64_t* rows, bool, const Tensor& x) {
    const Queue queue(x);
    check_positions(p, queue);
    check_launch(cuda::table_rows(p, rows, queue.stream));
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
