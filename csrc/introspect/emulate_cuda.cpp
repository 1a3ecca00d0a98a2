// Runs the CUDA kernels on a CPU, one thread of the grid after another, on host memory. Tests run them in place of the
// CPU kernels (rope_ext_use_cpu_kernels), and again from this file compiled with sanitizers.
#include <vector>

#include "cpu/isa.h"
#include "cuda/norm_elements.cuh"
#include "cuda/norm_grad.cuh"
#include "cuda/norm_grad_elements.cuh"
#include "cuda/norm_rotate.cuh"
#include "cuda/revolutions.cuh"
#include "cuda/rotate.cuh"
#include "cuda/table_grad.cuh"

namespace rope::cuda {
namespace {

int multiprocessors = 132;
uint64_t instances = 0, norm_instances = 0;
bool backwards = false;  // last thread first: exposes threads that rely on earlier ones

template <class Function>
void for_each(int64_t count, const Function& function) {
  for (int64_t i = 0; i < count; ++i) function(backwards ? count - 1 - i : i);
}

// ---- warps, whose lanes execute each step together ----

// One number per lane of a warp.
template <class A>
struct Lanes {
  A lane[kSumLanes];
};

template <class A>
Lanes<A> operator+(const Lanes<A>& a, const Lanes<A>& b) {
  Lanes<A> sum;
  for (int i = 0; i < kSumLanes; ++i) sum.lane[i] = a.lane[i] + b.lane[i];
  return sum;
}

template <class A>
Lanes<A> exchanged(const Lanes<A>& values, int mask) {
  Lanes<A> other;
  for (int i = 0; i < kSumLanes; ++i) other.lane[i] = values.lane[i ^ mask];
  return other;
}

// The sum over groups of `lanes` lanes, for each lane of a warp. values(lane, q) sets the numbers of a lane.
template <class A, int kWidth, class Values>
Lanes<A> sum_of_warp(int lanes, const Values& values) {
  Lanes<A> q[kWidth];
  for_each(kSumLanes, [&](int64_t lane) {
    A of_lane[kWidth];
    values(lane, of_lane);
    for (int i = 0; i < kWidth; ++i) q[i].lane[lane] = of_lane[i];
  });
  return sum_of_lanes<kWidth>(q, lanes);
}

void norm_rotate(const RotateParams& p, const Plan& plan) {
  run_norm_instance(p, plan, [&](auto instance) {
    using I = decltype(instance);
    using T = typename I::Element;
    using A = Arithmetic<T>;
    const int source = I::kWidth == 1 ? 3 : static_cast<int>(I::kSource);
    norm_instances |= uint64_t{1} << (static_cast<int>(p.dtype) * 4 + source);
    if constexpr (I::kWidth == 1) {
      for_each(norm_blocks(p) * kWarps, [&](int64_t warp) {
        const auto lane_of = [&](int64_t lane) { return NormElements<T>(p, warp, static_cast<int>(lane)); };
        const auto sums = sum_of_warp<A, 1>(kSumLanes, [&](int64_t lane, A* q) { *q = lane_of(lane).squares(); });
        for_each(kSumLanes, [&](int64_t lane) { lane_of(lane).finish(sums.lane[lane]); });
      });
    } else {
      const NormArguments a = norm_arguments_of(p, plan);
      const int64_t warps = plan.blocks * plan.threads / kSumLanes;
      for_each(plan.rounds * warps, [&](int64_t i) {
        std::vector<NormLane<T, I::kWidth, I::kSource>> lanes;
        for (int lane = 0; lane < kSumLanes; ++lane) {
          const int thread = static_cast<int>(i % warps) * kSumLanes + lane;
          lanes.emplace_back(a, section_of(a, thread), static_cast<int>(i / warps), thread);
        }
        for (int step = 0; step < lanes[0].norm.steps; ++step) {
          const auto sums =
              sum_of_warp<A, I::kWidth>(lanes[0].norm.lanes, [&](int64_t lane, auto& q) { lanes[lane].square(q); });
          for_each(kSumLanes, [&](int64_t lane) { lanes[lane].finish(sums.lane[lane]); });
        }
      });
    }
  });
}

// One block of norm_grad_kernel.
template <class T, int kWidth, Source kSource>
void norm_grad_block(const NormGradArguments& a, const NormGradPlan& plan, int tensor, int block, int slice) {
  using A = Arithmetic<T>;
  std::vector<A> shared(plan.shared / sizeof(A), A(NAN));
  std::vector<NormGradLane<T, kWidth, kSource>> threads;
  for (int thread = 0; thread < plan.threads; ++thread) threads.emplace_back(a, tensor, block, slice, thread);
  const auto& norm = a.norms[tensor];
  for_each(plan.threads / kSumLanes, [&](int64_t warp) {
    auto* lanes = &threads[warp * kSumLanes];
    const auto all = [&](const auto& step) { for_each(kSumLanes, [&](int64_t lane) { step(lanes[lane], lane); }); };
    for (int i = 0; i < lanes->tokens(); ++i) {
      all([&](auto& lane, int64_t) { lane.start_token(i); });
      for (int step = 0; step < lanes->steps; ++step) {
        A q[kSumLanes][2 * kWidth];
        all([&](auto& lane, int64_t at) { lane.multiply(step, q[at]); });
        if (!norm.sums_units) all([&](auto& lane, int64_t at) { lane.store(q[at], shared.data()); });
        const auto sums = sum_of_warp<A, kWidth>(norm.lanes, [&](int64_t lane, auto& of_lane) {
          norm.sums_units ? lanes[lane].fold(q[lane], of_lane) : lanes[lane].load(shared.data(), of_lane);
        });
        all([&](auto& lane, int64_t at) { lane.finish(sums.lane[at]); });
      }
      all([&](auto& lane, int64_t) { lane.end_token(shared.data()); });
    }
  });
  for_each(plan.threads, [&](int64_t thread) { threads[thread].add_tokens(shared.data(), static_cast<int>(thread)); });
}

// One block of norm_grad_elements_kernel.
template <class T>
void norm_grad_elements_block(const NormGradParams& p, const NormGradPlan& plan, int tensor, int64_t block, int slice) {
  using A = Arithmetic<T>;
  const auto thread_of = [&](int64_t thread) {
    return NormGradElements<T>(p, tensor, block, slice, static_cast<int>(plan.slices), static_cast<int>(thread));
  };
  for_each(plan.threads, [&](int64_t thread) { thread_of(thread).add_weights(); });
  for_each(kWarps, [&](int64_t warp) {
    const auto lane_of = [&](int64_t lane) { return thread_of(warp * kSumLanes + lane); };
    for (int64_t step = 0; step < lane_of(0).steps(); ++step) {
      const auto sums = sum_of_warp<A, 1>(kSumLanes, [&](int64_t lane, A* q) { *q = lane_of(lane).products(step); });
      for_each(kSumLanes, [&](int64_t lane) { lane_of(lane).finish(step, sums.lane[lane]); });
    }
  });
}

// All blocks of block_sums_kernel.
template <class A>
void add_block_sums(const BlockSums& s) {
  for (int t = 0; t < s.num_tensors; ++t) {
    for_each(quotient_up(s.head_dim[t], kSumChannels) * kSumChannels, [&](int64_t channel) {
      std::vector<A> rows(kSumRows * kSumChannels);
      for_each(kSumRows,
               [&](int64_t row) { rows[row * kSumChannels] = sum_of_row<A>(s, t, channel, static_cast<int>(row)); });
      add_rows(s, t, channel, rows.data());
    });
  }
}

void rotate(const RotateParams& p, int);

void norm_grad(const NormGradParams& given, int) {
  NormGradParams p = given;
  const RotateParams others = without_norm(&p);
  if (others.num_tensors) rotate(others, 1);
  if (p.num_tensors == 0) return;
  const NormGradPlan plan = norm_grad_plan_of(p, multiprocessors);
  run_norm_instance(p, plan.plan, [&](auto instance) {
    using I = decltype(instance);
    const int source = I::kWidth == 1 ? 3 : static_cast<int>(I::kSource);
    norm_instances |= uint64_t{1} << (16 + static_cast<int>(p.dtype) * 4 + source);
    NormGradArguments a;
    if constexpr (I::kWidth > 1) a = norm_grad_arguments_of(p, plan);
    for_each(plan.blocks * p.num_tensors * plan.slices, [&](int64_t i) {
      const int64_t block = i % plan.blocks, more = i / plan.blocks;
      const int tensor = static_cast<int>(more % p.num_tensors), slice = static_cast<int>(more / p.num_tensors);
      if constexpr (I::kWidth > 1) {
        norm_grad_block<typename I::Element, I::kWidth, I::kSource>(a, plan, tensor, static_cast<int>(block), slice);
      } else {
        norm_grad_elements_block<typename I::Element>(p, plan, tensor, block, slice);
      }
    });
  });
  dispatch_arithmetic(p.dtype, [&](auto tag) { add_block_sums<typename decltype(tag)::type>(block_sums_of(p)); });
}

// ---- threads that share nothing ----

void rotate(const RotateParams& p, int) {
  const Plan plan = plan_of(p, multiprocessors);
  if (plan.rounds == 0) return;
  if (has_norm(p)) return norm_rotate(p, plan);
  run_instance(p, plan, [&](auto instance) {
    using I = decltype(instance);
    const int width = I::kWidth == 1 ? 2 : I::kWidth * sizeof(typename I::Element) == 16 ? 0 : 1;
    instances |= uint64_t{1} << (static_cast<int>(p.dtype) * 9 + width * 3 + static_cast<int>(I::kSource));
    const auto arguments = arguments_of<IntOf<I::kWidth>>(p, plan);
    const int64_t threads_of_round = plan.blocks * plan.threads;
    for_each(plan.rounds * threads_of_round, [&](int64_t i) {
      rotate_thread<typename I::Element, I::kWidth, I::kSource>(arguments, static_cast<int>(i / threads_of_round),
                                                                static_cast<IntOf<I::kWidth>>(i % threads_of_round));
    });
  });
}

void table_grad(const TableGradParams& p, int) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    for_each(table_grad_threads(p), [&](int64_t i) { table_grad_thread<typename decltype(tag)::type>(p, i); });
  });
}

void cos_sin(const CosSinParams& p, int) {
  dispatch_arithmetic(p.dtype, [&](auto tag) {
    for_each(cos_sin_threads(p), [&](int64_t i) { cos_sin_thread<typename decltype(tag)::type>(p, i); });
  });
}

constexpr cpu::Kernels kEmulated = {"cuda", rotate, table_grad, cos_sin, norm_grad};

}  // namespace
}  // namespace rope::cuda

extern "C" {

// A cpu::Kernels that emulates a GPU with this number of multiprocessors: the fewer, the more heads a thread rotates.
// Resets the record of instances that have run.
__attribute__((visibility("default"))) const void* rope_ext_emulated_cuda(int multiprocessors, bool backwards) {
  rope::cuda::multiprocessors = multiprocessors;
  rope::cuda::backwards = backwards;
  rope::cuda::instances = rope::cuda::norm_instances = 0;
  return &rope::cuda::kEmulated;
}

// Runs the kernel of the op `revolutions`.
__attribute__((visibility("default"))) void rope_ext_emulated_revolutions(const rope::RevolutionsParams* p) {
  rope::dispatch_revolutions(*p, [&](auto t, auto a) {
    rope::cuda::for_each(rope::cuda::revolutions_threads(*p), [&](int64_t i) {
      rope::cuda::revolutions_thread<typename decltype(t)::type, typename decltype(a)::type>(*p, i);
    });
  });
}

// A bit for each instance of rotate_thread that has run: 9 per element type, for accesses of 16 bytes, of 4, and of one
// element, each with entries per pair, per channel and from positions.
__attribute__((visibility("default"))) uint64_t rope_ext_emulated_instances() { return rope::cuda::instances; }

// A bit for each instance of the kernels of norms that has run: 4 per element type, for accesses of 16 bytes with
// entries per pair, per channel and from positions, and for accesses of one element; then as many for the derivatives.
__attribute__((visibility("default"))) uint64_t rope_ext_emulated_norm_instances() {
  return rope::cuda::norm_instances;
}
}
