// Grids, streams and errors of launches.
//
// The error of a launch is what cudaLaunchKernelExC returns. cudaGetLastError is not called: it would attribute errors
// of earlier calls to this launch, and clear them. The runtime is linked statically (CMakeLists.txt), so its last
// error, which nobody reads, is separate from that of torch's runtime. A launch that fails here is thus reported once,
// by rope_ext, and an error that torch has not reported yet is preserved. Errors that lose the context come from the
// driver, which both runtimes share, and are returned by every later call of either.
#pragma once

#include <cuda_runtime_api.h>

#include "core/integer.h"
#include "cuda/kernels.h"
#include "cuda/plan.h"

namespace rope::cuda {

inline cudaStream_t stream_of(Stream stream) { return static_cast<cudaStream_t>(stream); }

// Multiprocessors of a device, queried once; 1 if the query fails, which costs only speed.
int multiprocessors_of(int device);

// cuda::rotate for a call in which a tensor is normalized.
const char* norm_rotate(const RotateParams& p, int multiprocessors, Stream stream);

// std::type_identity of C++20: keeps T from being deduced from the argument.
template <class T>
struct Identity {
  using type = T;
};

// Launches a kernel. The arguments are converted to the types of its parameters, and not copied otherwise. Returns null
// or the name of the error. The launch has no attributes: with programmatic stream serialization, every kernel would
// have to wait for its predecessor before its first read.
template <class... Parameters>
const char* launch_shared(void (*kernel)(Parameters...), dim3 grid, dim3 block, int shared_bytes, Stream stream,
                          const typename Identity<Parameters>::type&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream_of(stream);
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
  const cudaError_t error = cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), pointers);
  return error == cudaSuccess ? nullptr : cudaGetErrorName(error);
}

template <class... Parameters>
const char* launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, Stream stream,
                   const typename Identity<Parameters>::type&... arguments) {
  return launch_shared(kernel, grid, block, 0, stream, arguments...);
}

// Launches one thread per item, in blocks of kBlock; nothing if there are no items. Returns kTooLarge if the grid would
// exceed kMostBlocks.
template <class... Parameters>
const char* launch_per_item(void (*kernel)(Parameters...), int64_t items, Stream stream,
                            const typename Identity<Parameters>::type&... arguments) {
  if (items == 0) return nullptr;
  const int64_t blocks = quotient_up(items, kBlock);
  if (blocks > kMostBlocks) return kTooLarge;
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kBlock), stream, arguments...);
}

static __device__ __forceinline__ int64_t index_of_thread() { return int64_t{blockIdx.x} * kBlock + threadIdx.x; }

}  // namespace rope::cuda
