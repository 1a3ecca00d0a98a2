// The kernels without a norm, whose threads run the functions of the .cuh files, and their launches.
#include <cuda_runtime_api.h>

#include <atomic>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/rotate.cuh"
#include "cuda/table_grad.cuh"

namespace rope::cuda {
namespace {

template <class T, int kWidth, Source kSource>
__global__ void __launch_bounds__(kRotateBlock, kSource == Source::kPerPair ? 7 : 4)
    rotate_kernel(const __grid_constant__ RotateArguments<IntOf<kWidth>> a) {
  const IntOf<kWidth> block = blockIdx.x, threads = blockDim.x;
  rotate_thread<T, kWidth, kSource>(a, static_cast<int>(blockIdx.y), block * threads + static_cast<int>(threadIdx.x));
}

template <class T>
__global__ void __launch_bounds__(kBlock) table_grad_kernel(const __grid_constant__ TableGradParams p) {
  table_grad_thread<T>(p, index_of_thread());
}

// Two blocks per multiprocessor: without this bound, ptxas aims at four on sm_120 and spills registers.
template <class A>
__global__ void __launch_bounds__(kBlock, 2) cos_sin_kernel(const __grid_constant__ CosSinParams p) {
  cos_sin_thread<A>(p, index_of_thread());
}

__global__ void __launch_bounds__(kBlock) table_rows_kernel(const __grid_constant__ Tokens p, int64_t* rows) {
  const int64_t i = index_of_thread();
  if (i < p.batch * p.seqlen) rows[i] = table_row(p.positions, i / p.seqlen, i % p.seqlen);
}

}  // namespace

int multiprocessors_of(int device) {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];
  const bool remembered = device >= 0 && device < kDevices;
  if (const int count = remembered ? known[device].load(std::memory_order_relaxed) : 0) return count;
  int count = 0;
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess || count < 1) return 1;
  if (remembered) known[device].store(count, std::memory_order_relaxed);
  return count;
}

const char* const kTooLarge = "too large";

int current_device() {
  int device = -1;
  return cudaGetDevice(&device) == cudaSuccess ? device : -1;
}

const char* rotate(const RotateParams& p, int device, Stream stream) {
  if (too_large(p)) return kTooLarge;
  if (has_norm(p)) return norm_rotate(p, multiprocessors_of(device), stream);
  const Plan plan = plan_of(p, multiprocessors_of(device));
  if (plan.rounds == 0) return nullptr;
  if (plan.blocks > kMostBlocks) return kTooLarge;
  const dim3 grid(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.rounds));
  const char* error = nullptr;
  run_instance(p, plan, [&](auto instance) {
    using I = decltype(instance);
    error = launch(rotate_kernel<typename I::Element, I::kWidth, I::kSource>, grid, dim3(plan.threads), stream,
                   arguments_of<IntOf<I::kWidth>>(p, plan));
  });
  return error;
}

const char* table_grad(const TableGradParams& p, Stream stream) {
  const char* error = nullptr;
  dispatch_dtype(p.dtype, [&](auto tag) {
    error = launch_per_item(table_grad_kernel<typename decltype(tag)::type>, table_grad_threads(p), stream, p);
  });
  return error;
}

const char* cos_sin(const CosSinParams& p, Stream stream) {
  const char* error = nullptr;
  dispatch_arithmetic(p.dtype, [&](auto tag) {
    error = launch_per_item(cos_sin_kernel<typename decltype(tag)::type>, cos_sin_threads(p), stream, p);
  });
  return error;
}

const char* table_rows(const Tokens& p, int64_t* rows, Stream stream) {
  return launch_per_item(table_rows_kernel, p.batch * p.seqlen, stream, p, rows);
}

}  // namespace rope::cuda
