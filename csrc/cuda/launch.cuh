// Grids, streams and errors of launches.
#pragma once

#include <cuda_runtime_api.h>

#include "core/integer.h"
#include "cuda/kernels.h"
#include "cuda/plan.h"

namespace rope::cuda {

// The grid of one thread per item, in blocks of kBlock.
inline dim3 grid_for(int64_t items) { return dim3(static_cast<unsigned>(round_up(items, kBlock) / kBlock)); }
static __device__ __forceinline__ int64_t index_of_thread() { return int64_t{blockIdx.x} * kBlock + threadIdx.x; }

inline cudaStream_t stream_of(Stream stream) { return static_cast<cudaStream_t>(stream); }

// The result of a launch: null, or the name of its error.
inline const char* launched() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorName(error);
}

}  // namespace rope::cuda
