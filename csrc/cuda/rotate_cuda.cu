// The kernels around the threads of rotate.cuh, and their launches.
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdio>

#include "cuda/kernels.h"
#include "cuda/rotate.cuh"

namespace rope::cuda {
namespace {

template <class T, int kWidth, bool kPerChannel>
__global__ void __launch_bounds__(kBlock)
    rotate_kernel(const __grid_constant__ Params p, const __grid_constant__ Plan plan) {
  const Thread thread = {static_cast<int>(blockIdx.x), static_cast<int>(threadIdx.x), static_cast<int>(threadIdx.y),
                         static_cast<int>(threadIdx.z)};
  rotate_thread<T, kWidth, kPerChannel>(p, plan, thread);
}

// Of a grid of blocks of kBlock threads in a row.
__device__ int64_t index_of_thread() { return int64_t(blockIdx.x) * kBlock + threadIdx.x; }

template <class T>
__global__ void __launch_bounds__(kBlock) table_grad_kernel(const __grid_constant__ Params p) {
  table_grad_thread<T>(p, index_of_thread());
}

__global__ void table_rows_kernel(const __grid_constant__ Params p, int64_t* rows) {
  const int64_t i = index_of_thread();
  if (i < p.batch * p.seqlen) rows[i] = table_row(p.positions, i / p.seqlen, i % p.seqlen);
}

__global__ void assert_positions_kernel(const __grid_constant__ Params p) {
  const int64_t i = index_of_thread();
  if (i >= p.batch * p.seqlen) return;
  const int64_t batch = i / p.seqlen, token = i % p.seqlen;
  if (table_row(p.positions, batch, token) != kOutside) return;
  const int64_t start = p.positions.cu_seqlens.data ? sequence_start(p.positions, token) : 0;
  printf("rope_ext: positions must lead to a row of the table, 0 to %lld, got row %lld for token %lld of batch %lld\n",
         static_cast<long long>(p.positions.rows - 1),
         static_cast<long long>(wanted_row(p.positions, batch, token, start)), static_cast<long long>(token),
         static_cast<long long>(batch));
  __trap();
}

cudaStream_t stream_of(Stream stream) { return static_cast<cudaStream_t>(stream); }

const char* launched() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorName(error);
}

dim3 grid_for(int64_t threads) { return dim3(static_cast<unsigned>((threads + kBlock - 1) / kBlock)); }

// Asked once per device.
int multiprocessors_of(int device) {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];
  if (device >= 0 && device < kDevices) {
    if (const int count = known[device].load(std::memory_order_relaxed)) return count;
  }
  int count = 0;
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess || count < 1) count = 1;
  if (device >= 0 && device < kDevices) known[device].store(count, std::memory_order_relaxed);
  return count;
}

}  // namespace

const char* rotate(const Params& p, int device, Stream stream) {
  const Plan plan = plan_of(p, multiprocessors_of(device));
  if (plan.blocks == 0) return nullptr;
  const dim3 block(plan.lanes, plan.slots, plan.tokens);
  run_instance(p, plan, [&](auto instance) {
    using I = decltype(instance);
    rotate_kernel<typename I::Element, I::kWidth, I::kPerChannel>
        <<<dim3(static_cast<unsigned>(plan.blocks)), block, 0, stream_of(stream)>>>(p, plan);
  });
  return launched();
}

const char* table_grad(const Params& p, int, Stream stream) {
  const int64_t entries = table_entries(p);
  if (entries == 0) return nullptr;
  dispatch_dtype(p.dtype, [&](auto tag) {
    table_grad_kernel<typename decltype(tag)::type><<<grid_for(entries), kBlock, 0, stream_of(stream)>>>(p);
  });
  return launched();
}

const char* table_rows(const Params& p, int64_t* rows, int, Stream stream) {
  if (p.batch * p.seqlen == 0) return nullptr;
  table_rows_kernel<<<grid_for(p.batch * p.seqlen), kBlock, 0, stream_of(stream)>>>(p, rows);
  return launched();
}

const char* assert_positions(const Params& p, int, Stream stream) {
  if (p.batch * p.seqlen == 0) return nullptr;
  assert_positions_kernel<<<grid_for(p.batch * p.seqlen), kBlock, 0, stream_of(stream)>>>(p);
  return launched();
}

}  // namespace rope::cuda
