// The ops on CUDA tensors. Compiled where nvcc is, also beside a torch without CUDA.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>

#include "bindings/errors.h"
#include "bindings/ops.h"
#include "cuda/kernels.h"

namespace rope {
namespace {

// Where the launches of a call go.
struct Queue {
  int device;
  cuda::Stream stream;
};

// torch's current stream. Its function lies in libtorch_cuda.so, which a torch without CUDA lacks, so it is looked up
// at the first call: linked, this library would not load there.
Queue queue_of(const Tensor& x) {
  using CurrentStream = AOTITorchError (*)(int32_t, void**);
  static const CurrentStream current_stream = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<CurrentStream>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  if (!current_stream) throw std::runtime_error("rope_ext found no aoti_torch_get_current_cuda_stream in torch");
  Queue queue{x.device_index(), nullptr};
  TORCH_ERROR_CODE_CHECK(current_stream(queue.device, &queue.stream));
  return queue;
}

void check_launch(const char* error) {
  if (!error) return;
  const bool other_architecture = !std::strcmp(error, "cudaErrorNoKernelImageForDevice");
  throw std::runtime_error(text("rope_ext could not launch a CUDA kernel: ", error,
                                other_architecture ? " (built for architectures " ROPE_CUDA_ARCHITECTURES
                                                     "; rebuild with TORCH_CUDA_ARCH_LIST set to that of this GPU: "
                                                     "pip install --no-build-isolation --no-deps --force-reinstall "
                                                     "rope_ext)"
                                                   : ""));
}

// A debug mode: one more kernel per call, which stops the program at a position outside the table.
bool checks_positions() {
  static const bool wanted = [] {
    const char* value = std::getenv("ROPE_EXT_CHECK_POSITIONS");
    return value && std::strcmp(value, "") && std::strcmp(value, "0");
  }();
  return wanted;
}

struct Cuda {
  static Tensor empty_like(const Tensor& x, bool*) { return Tensor(torch::stable::empty_like(x.stable())); }

  static void rotate(const Params& p, const Tensor& x) {
    const Queue queue = queue_of(x);
    if (checks_positions()) check_launch(cuda::assert_positions(p, queue.device, queue.stream));
    check_launch(cuda::rotate(p, queue.device, queue.stream));
  }

  static void table_grad(const Params& p, const Tensor& x) {
    const Queue queue = queue_of(x);
    check_launch(cuda::table_grad(p, queue.device, queue.stream));
  }

  static void table_rows(const Params& p, int64_t* rows, const Tensor& x) {
    const Queue queue = queue_of(x);
    if (checks_positions()) check_launch(cuda::assert_positions(p, queue.device, queue.stream));
    check_launch(cuda::table_rows(p, rows, queue.device, queue.stream));
  }
};

STABLE_TORCH_LIBRARY_IMPL(rope_ext, CUDA, m) { Ops<Cuda>::add_to(m); }

}  // namespace
}  // namespace rope

// The architectures that the kernels were compiled for, "8.0 9.0+PTX"; and the version of the compiler, "13.0". For
// ctypes (rope_ext/_library.py).
extern "C" __attribute__((visibility("default"))) const char* rope_ext_cuda_architectures() {
  return ROPE_CUDA_ARCHITECTURES;
}
extern "C" __attribute__((visibility("default"))) const char* rope_ext_cuda_version() { return ROPE_CUDA_VERSION; }
