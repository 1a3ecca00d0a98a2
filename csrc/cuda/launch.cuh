// What the launches of all kernels share.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/kernels.h"
#include "cuda/plan.h"

namespace rope::cuda {

// One thread per item, in blocks of kBlock.
inline dim3 grid_for(int64_t items) { return dim3(static_cast<unsigned>((items + kBlock - 1) / kBlock)); }
static __device__ __forceinline__ int64_t index_of_thread() { return int64_t{blockIdx.x} * kBlock + threadIdx.x; }

inline cudaStream_t stream_of(Stream stream) { return static_cast<cudaStream_t>(stream); }

// Null, or the name of what went wrong.
inline const char* launched() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorName(error);
}

}  // namespace rope::cuda
