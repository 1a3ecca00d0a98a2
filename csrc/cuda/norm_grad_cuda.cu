// The kernels for the derivatives of norm and rotation, and their launches.
#include <cuda_runtime_api.h>

#include "cuda/launch.cuh"
#include "cuda/norm_grad.cuh"
#include "cuda/norm_grad_elements.cuh"
#include "cuda/rotate.cuh"

namespace rope::cuda {
namespace {

extern __shared__ __align__(16) double shared_memory[];

template <class T, int kWidth, Source kSource>
__global__ void __launch_bounds__(kNormGradThreads) norm_grad_kernel(const __grid_constant__ NormGradArguments a) {
  using A = Arithmetic<T>;
  A* shared = reinterpret_cast<A*>(shared_memory);
  const int thread = static_cast<int>(threadIdx.x);
  NormGradLane<T, kWidth, kSource> lane(a, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x),
                                        static_cast<int>(blockIdx.z), thread);
  const int tokens = lane.tokens(), steps = lane.steps;
  for (int i = 0; i < tokens; ++i) {
    lane.start_token(i);
    for (int step = 0; step < steps; ++step) {
      A q[2 * kWidth], sums[kWidth];
      lane.multiply(step, q);
      if (lane.norm.sums_units) {
        lane.fold(q, sums);
      } else {
        __syncwarp();
        lane.store(q, shared);
        __syncwarp();
        lane.load(shared, sums);
      }
      lane.finish(sum_of_lanes<kWidth>(sums, lane.norm.lanes));
    }
    __syncwarp();
    lane.end_token(shared);
  }
  __syncthreads();
  lane.add_tokens(shared, thread);
}

template <class T>
__global__ void __launch_bounds__(kWarps* kSumLanes, 2)
    norm_grad_elements_kernel(const __grid_constant__ NormGradParams p) {
  const NormGradElements<T> lane(p, static_cast<int>(blockIdx.y), blockIdx.x, static_cast<int>(blockIdx.z),
                                 static_cast<int>(gridDim.z), static_cast<int>(threadIdx.x));
  lane.add_weights();
  __syncthreads();
  const int64_t steps = lane.steps();
  for (int64_t step = 0; step < steps; ++step) {
    Arithmetic<T> q[1] = {lane.products(step)};
    lane.finish(step, sum_of_lanes<1>(q, kSumLanes));
  }
}

template <class A>
__global__ void __launch_bounds__(kSumChannels* kSumRows) block_sums_kernel(const __grid_constant__ BlockSums s) {
  A* rows = reinterpret_cast<A*>(shared_memory);
  const int row = static_cast<int>(threadIdx.x) / kSumChannels, of_row = static_cast<int>(threadIdx.x) % kSumChannels;
  const int64_t channel = int64_t{blockIdx.x} * kSumChannels + of_row;
  rows[threadIdx.x] = sum_of_row<A>(s, static_cast<int>(blockIdx.y), channel, row);
  __syncthreads();
  if (row == 0) add_rows(s, static_cast<int>(blockIdx.y), channel, rows + of_row);
}

const char* launch_norm_grad(const NormGradParams& p, int multiprocessors, Stream stream) {
  const NormGradPlan plan = norm_grad_plan_of(p, multiprocessors);
  if (plan.blocks == 0) return nullptr;
  if (plan.blocks > kMostBlocks) return kTooLarge;
  const dim3 grid(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(p.num_tensors),
                  static_cast<unsigned>(plan.slices));
  const char* error = nullptr;
  run_norm_instance(p, plan.plan, [&](auto instance) {
    using I = decltype(instance);
    if constexpr (I::kWidth > 1) {
      error = launch_shared(norm_grad_kernel<typename I::Element, I::kWidth, I::kSource>, grid, dim3(plan.threads),
                            plan.shared, stream, norm_grad_arguments_of(p, plan));
    } else {
      error = launch(norm_grad_elements_kernel<typename I::Element>, grid, dim3(plan.threads), stream, p);
    }
  });
  return error;
}

const char* launch_block_sums(const NormGradParams& p, Stream stream) {
  const BlockSums s = block_sums_of(p);
  if (s.num_tensors == 0) return nullptr;
  const dim3 grid(static_cast<unsigned>(quotient_up(most_head_dim(s), kSumChannels)),
                  static_cast<unsigned>(s.num_tensors));
  const char* error = nullptr;
  dispatch_arithmetic(p.dtype, [&](auto tag) {
    using A = typename decltype(tag)::type;
    constexpr int kThreads = kSumChannels * kSumRows;
    error = launch_shared(block_sums_kernel<A>, grid, dim3(kThreads), kThreads * sizeof(A), stream, s);
  });
  return error;
}

}  // namespace

const char* norm_grad(const NormGradParams& given, int device, Stream stream) {
  if (too_large(given)) return kTooLarge;
  NormGradParams p = given;
  const RotateParams others = without_norm(&p);
  const char* error = others.num_tensors ? rotate(others, device, stream) : nullptr;
  if (error || p.num_tensors == 0) return error;
  error = launch_norm_grad(p, multiprocessors_of(device), stream);
  return error ? error : launch_block_sums(p, stream);
}

}  // namespace rope::cuda
