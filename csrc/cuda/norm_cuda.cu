// The kernels of calls in which a tensor is normalized, and their launches.
#include <cuda_runtime_api.h>

#include "cuda/launch.cuh"
#include "cuda/norm_elements.cuh"
#include "cuda/norm_rotate.cuh"
#include "cuda/rotate.cuh"

namespace rope::cuda {
namespace {

template <class T, int kWidth, Source kSource>
__global__ void __launch_bounds__(kRotateBlock, 4) norm_kernel(const __grid_constant__ NormArguments a) {
  const int thread = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  NormLane<T, kWidth, kSource> lane(a, section_of(a, thread), static_cast<int>(blockIdx.y), thread);
  const int steps = lane.norm.steps;
  for (int step = 0; step < steps; ++step) {
    Arithmetic<T> q[kWidth];
    lane.square(q);
    lane.finish(lane.sums ? sum_of_lanes<kWidth>(q, lane.norm.lanes) : 0);
  }
}

template <class T>
__global__ void __launch_bounds__(kWarps* kSumLanes, 3) norm_elements_kernel(const __grid_constant__ RotateParams p) {
  const int64_t warp = int64_t{blockIdx.x} * kWarps + threadIdx.x / kSumLanes;
  const NormElements<T> lane(p, warp, threadIdx.x % kSumLanes);
  Arithmetic<T> q[1] = {lane.squares()};
  lane.finish(sum_of_lanes<1>(q, kSumLanes));
}

}  // namespace

const char* norm_rotate(const RotateParams& p, int multiprocessors, Stream stream) {
  const Plan plan = plan_of(p, multiprocessors);
  if (plan.rounds == 0) return nullptr;
  const int64_t blocks = plan.width > 1 ? plan.blocks : norm_blocks(p);
  if (blocks > kMostBlocks) return kTooLarge;
  const char* error = nullptr;
  run_norm_instance(p, plan, [&](auto instance) {
    using I = decltype(instance);
    if constexpr (I::kWidth > 1) {
      const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(plan.rounds));
      error = launch(norm_kernel<typename I::Element, I::kWidth, I::kSource>, grid, dim3(plan.threads), stream,
                     norm_arguments_of(p, plan));
    } else {
      error = launch(norm_elements_kernel<typename I::Element>, dim3(static_cast<unsigned>(blocks)),
                     dim3(kWarps * kSumLanes), stream, p);
    }
  });
  return error;
}

}  // namespace rope::cuda
