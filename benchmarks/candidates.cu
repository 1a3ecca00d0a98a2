// Compares ways to launch the rotate kernel with the shipped one, a copy and an empty kernel: an A/B test without
// Python.
//
//   nvcc -std=c++17 -arch=sm_90 -fmad=false -cudart static -I csrc -o candidates benchmarks/candidates.cu
//   candidates            one JSON line per shape, dtype and candidate
//   candidates --plans    their grids on 132 multiprocessors, without a GPU
//
// Candidates are timed interleaved, and the L2 is flushed by reads before each launch; small shapes are timed in a CUDA
// graph. Each result is compared bit for bit with that of the first candidate. With -Xptxas -dscm=cs -DSTORES=st.cs the
// same file times evict-first stores.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cuda/plan.cpp"
#include "cuda/rotate.cuh"
#include "gpu_time.cuh"

#if !defined(STORES)
#define STORES default
#endif
#define QUOTED_AFTER_EXPANSION(text) #text
#define QUOTED(text) QUOTED_AFTER_EXPANSION(text)

namespace {

using namespace gpu_time;
using namespace rope;
using cuda::Plan;

constexpr int64_t kSmall = 4 << 20;  // bytes read and written; below, the cost of a launch dominates

struct Shape {
  const char* name;
  int64_t batch, seqlen, heads_q, heads_k, head_dim, first_position;
  int64_t elements() const { return batch * seqlen * (heads_q + heads_k) * head_dim; }
};
// The shapes of benchmarks/harness/shapes.py.
constexpr Shape kShapes[] = {
    {"prefill", 1, 4096, 32, 8, 128, 0}, {"train", 4, 2048, 16, 16, 64, 0}, {"decode", 32, 1, 32, 8, 128, 4095},
    {"tiny", 1, 1, 8, 2, 64, 4095},      {"long", 1, 32768, 8, 2, 128, 0},  {"video", 1, 131040, 12, 12, 128, 0},
};

struct Type {
  const char* name;
  DType dtype;
};
constexpr Type kTypes[] = {{"bf16", DType::kBFloat16}, {"fp32", DType::kFloat32}, {"fp16", DType::kFloat16}};

// Programmatic dependent launch. The attribute lets a kernel start before its predecessor in the stream has finished,
// so that the kernel must wait for the predecessor's results itself; kTriggers also lets the successor start that
// early.
enum Pdl { kNone, kWaits, kTriggers };

struct Candidate {
  const char* name;
  int heads_per_thread, threads;  // 0: chosen by plan_of
  int blocks;                     // minimum per multiprocessor, in __launch_bounds__
  Pdl pdl;
};
constexpr Candidate kCandidates[] = {
    {"shipped", 0, 0, 7, kNone},
    {"dependent launch", 0, 0, 7, kWaits},
    {"dependent launch, trigger", 0, 0, 7, kTriggers},
    {"1 head per thread", 1, 0, 7, kNone},
    {"2 heads per thread", 2, 0, 7, kNone},
    {"4 heads per thread", 4, 0, 7, kNone},
    {"64 threads per block", 0, 64, 7, kNone},
    {"256 threads per block", 0, 256, 3, kNone},
    {"6 blocks", 0, 0, 6, kNone},
    {"8 blocks", 0, 0, 8, kNone},
};

// ---- everything that depends on the kernel's body, arguments and plan ----

using Arguments = cuda::RotateArguments<int>;
using Kernel = void (*)(Arguments);

template <class T, int kThreads, int kBlocks, Pdl kPdl>
__global__ void __launch_bounds__(kThreads, kBlocks) candidate_kernel(const __grid_constant__ Arguments a) {
#if __CUDA_ARCH__ >= 900
  if constexpr (kPdl == kTriggers) cudaTriggerProgrammaticLaunchCompletion();
  if constexpr (kPdl != kNone) cudaGridDependencySynchronize();
#endif
  const int thread = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  cuda::rotate_thread<T, 16 / sizeof(T), Source::kPerPair>(a, static_cast<int>(blockIdx.y), thread);
}

template <class T>
Kernel kernel_of(const Candidate& c) {
  constexpr int kThreads = cuda::kRotateBlock;
  if (c.pdl == kWaits) return candidate_kernel<T, kThreads, 7, kWaits>;
  if (c.pdl == kTriggers) return candidate_kernel<T, kThreads, 7, kTriggers>;
  if (c.threads > kThreads) return candidate_kernel<T, 2 * kThreads, 3, kNone>;
  if (c.blocks == 6) return candidate_kernel<T, kThreads, 6, kNone>;
  return c.blocks == 8 ? candidate_kernel<T, kThreads, 8, kNone> : candidate_kernel<T, kThreads, 7, kNone>;
}

Kernel kernel_of(DType dtype, const Candidate& c) {
  return dtype == DType::kFloat32    ? kernel_of<float>(c)
         : dtype == DType::kBFloat16 ? kernel_of<BFloat16>(c)
                                     : kernel_of<Float16>(c);
}

RotateParams params_of(const Shape& s, DType dtype, char* in, char* out, const float* cos, const float* sin) {
  RotateParams p{};
  p.batch = s.batch;
  p.seqlen = s.seqlen;
  p.positions.offset = s.first_position;
  p.positions.rows = s.first_position + s.seqlen;
  p.dtype = dtype;
  p.pairs = s.head_dim / 2;
  p.pairing = p.out_pairing = half_pairing(p.pairs);
  p.source = Source::kPerPair;
  p.table_dtype = DType::kFloat32;
  p.table_heads = 1;
  for (const int64_t heads : {s.heads_q, s.heads_k}) {
    const Strides strides = {s.seqlen * heads * s.head_dim, heads * s.head_dim, s.head_dim, 1};
    p.x[p.num_tensors++] = {in, out, strides, strides, heads, s.head_dim};
    in += s.batch * s.seqlen * heads * s.head_dim * bytes_of(dtype);
    out += s.batch * s.seqlen * heads * s.head_dim * bytes_of(dtype);
  }
  p.cos = {cos, cos, 0, p.pairs, 0, 1};
  p.sin = {sin, sin, 0, p.pairs, 0, 1};
  return p;
}

// The plan of a candidate: the result of plan_of, with other heads per thread or threads per block.
Plan plan_for(const Candidate& c, const RotateParams& p, int multiprocessors) {
  Plan plan = cuda::plan_of(p, multiprocessors);
  if (c.heads_per_thread) plan.heads_per_thread = c.heads_per_thread;
  if (c.threads) plan.threads = c.threads;
  plan.round_tokens = cuda::round_tokens(p, plan);
  plan.rounds = quotient_up(p.batch * p.seqlen, plan.round_tokens);
  plan.blocks = 0;
  for (int t = 0; t < p.num_tensors; ++t) plan.blocks += cuda::blocks(p, t, plan);
  return plan;
}

void launch(const Candidate& c, const RotateParams& p, const Plan& plan, cudaLaunchConfig_t config) {
  config.gridDim = dim3(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.rounds));
  config.blockDim = dim3(plan.threads);
  check(cudaLaunchKernelEx(&config, kernel_of(p.dtype, c), cuda::arguments_of<int>(p, plan)));
}

int64_t blocks_of(const Plan& plan) { return plan.blocks * plan.rounds; }

// ---- launch and report ----

void launch(const Gpu& gpu, const Candidate& c, const RotateParams& p, const Plan& plan) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.stream = gpu.stream;
  config.attrs = &attribute;
  config.numAttrs = c.pdl != kNone;
  launch(c, p, plan, config);
}

void print_plan(const Shape& s, const Type& type, const Candidate& c, const Plan& plan) {
  std::printf("{\"shape\": \"%s\", \"dtype\": \"%s\", \"candidate\": \"%s\", \"stores\": \"%s\", ", s.name, type.name,
              c.name, QUOTED(STORES));
  std::printf("\"blocks\": %lld, \"threads\": %d, \"heads_per_thread\": %d", static_cast<long long>(blocks_of(plan)),
              plan.threads, plan.heads_per_thread);
}

void time_case(const Gpu& gpu, const Shape& s, const Type& type) {
  constexpr int kCount = std::size(kCandidates);
  const int64_t bytes = s.elements() * bytes_of(type.dtype);
  const int64_t table = (s.first_position + s.seqlen) * s.head_dim / 2 * sizeof(float);
  char *in = allocate<char>(bytes), *out = allocate<char>(bytes), *expected = allocate<char>(bytes);
  float *cos = allocate<float>(table), *sin = allocate<float>(table);
  for (auto& [data, size] : {std::pair<void*, int64_t>{in, bytes}, {cos, table}, {sin, table}}) {
    fill_kernel<<<gpu.wide(), 256, 0, gpu.stream>>>(static_cast<uint32_t*>(data), size / 4);
  }
  const RotateParams p = params_of(s, type.dtype, in, out, cos, sin);
  std::vector<Plan> plans;
  std::vector<bool> same;
  for (const Candidate& c : kCandidates) {
    plans.push_back(plan_for(c, p, gpu.properties.multiProcessorCount));
    check(cudaMemsetAsync(out, 0xff, bytes, gpu.stream));
    launch(gpu, c, p, plans.back());
    if (plans.size() == 1) check(cudaMemcpyAsync(expected, out, bytes, cudaMemcpyDeviceToDevice, gpu.stream));
    same.push_back(gpu.differences(out, expected, bytes) == 0);
  }
  const auto run = [&](int i) {
    if (i == kCount) return check(cudaMemcpyAsync(out, in, bytes, cudaMemcpyDeviceToDevice, gpu.stream));
    launch(gpu, kCandidates[i], p, plans[i]);
  };
  std::vector<double> us;
  if (2 * bytes < kSmall) {
    for (int i = 0; i <= kCount; ++i) us.push_back(timed_in_graph(gpu, [&] { run(i); }));
  } else {
    us = timed_in_turns(gpu, kCount + 1, run);
  }
  for (int i = 0; i < kCount; ++i) {
    print_plan(s, type, kCandidates[i], plans[i]);
    std::printf(", \"us\": %.3f, \"copy_us\": %.3f, \"copy_percent\": %.1f, \"gb_per_s\": %.0f, \"same_bits\": %s}\n",
                us[i], us[kCount], 100 * us[kCount] / us[i], 2e-3 * bytes / us[i], same[i] ? "true" : "false");
  }
  std::fflush(stdout);  // keeps finished measurements if the program is stopped
  for (void* data : {static_cast<void*>(in), static_cast<void*>(out), static_cast<void*>(expected),
                     static_cast<void*>(cos), static_cast<void*>(sin)}) {
    check(cudaFree(data));
  }
}

void print_plans() {
  char *in = reinterpret_cast<char*>(1 << 20), *out = in + (1 << 20);  // only their alignment is read
  const float* table = reinterpret_cast<const float*>(in);
  for (const Type& type : kTypes) {
    for (const Shape& s : kShapes) {
      for (const Candidate& c : kCandidates) {
        print_plan(s, type, c, plan_for(c, params_of(s, type.dtype, in, out, table, table), 132));
        std::printf("}\n");
      }
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 2 && !std::strcmp(arguments[1], "--plans")) return print_plans(), 0;
  const Gpu gpu;
  const auto launch_empty = [&] { empty_kernel<<<1, 32, 0, gpu.stream>>>(); };
  launch_empty();  // loads the kernel before the capture, which might not allow it
  const double empty = timed_in_graph(gpu, launch_empty);
  std::printf("{\"gpu\": \"%s\", \"multiprocessors\": %d, \"empty_launch_us\": %.3f}\n", gpu.properties.name,
              gpu.properties.multiProcessorCount, empty);
  std::fflush(stdout);
  for (const Type& type : kTypes) {
    for (const Shape& s : kShapes) time_case(gpu, s, type);
  }
}
