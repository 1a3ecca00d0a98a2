// Measures GPU time from C++ without Torch: L2 flushes, interleaved calls, calls in a CUDA graph. For candidates.cu.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace gpu_time {

constexpr int kRounds = 31, kLaunches = 100;

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

static __global__ void empty_kernel() {}

// Random bits, except that the highest bit of each exponent is 0: numbers between -2 and 2 in 16 and in 32 bits.
static __global__ void fill_kernel(uint32_t* data, int64_t words) {
  for (int64_t i = blockIdx.x * int64_t{256} + threadIdx.x; i < words; i += gridDim.x * int64_t{256}) {
    uint32_t bits = static_cast<uint32_t>(i) * 2654435761u;
    bits = (bits ^ (bits >> 15)) * 2246822519u;
    data[i] = (bits ^ (bits >> 13)) & 0xbfffbfffu;
  }
}

static __global__ void read_kernel(const float4* data, int64_t count, float* sum) {
  float found = 0;
  for (int64_t i = blockIdx.x * int64_t{256} + threadIdx.x; i < count; i += gridDim.x * int64_t{256}) {
    const float4 value = data[i];
    found += value.x + value.y + value.z + value.w;
  }
  if (found != 0) *sum = found;  // data is all zeros, so nothing is written, but the compiler cannot know
}

static __global__ void differences_kernel(const uint32_t* a, const uint32_t* b, int64_t words,
                                          unsigned long long* count) {
  for (int64_t i = blockIdx.x * int64_t{256} + threadIdx.x; i < words; i += gridDim.x * int64_t{256}) {
    if (a[i] != b[i]) atomicAdd(count, 1ull);
  }
}

template <class T>
T* allocate(int64_t bytes) {
  void* data;
  check(cudaMalloc(&data, bytes));
  check(cudaMemset(data, 0, bytes));
  return static_cast<T*>(data);
}

struct Gpu {
  cudaStream_t stream;
  cudaDeviceProp properties;
  float4* flusher;
  int64_t flusher_bytes;
  float* sum;
  unsigned long long* count;

  Gpu() {
    check(cudaGetDeviceProperties(&properties, 0));
    check(cudaStreamCreate(&stream));
    flusher_bytes = int64_t{2} * properties.l2CacheSize;
    flusher = allocate<float4>(flusher_bytes);
    sum = allocate<float>(sizeof(float));
    count = allocate<unsigned long long>(sizeof(unsigned long long));
  }

  int wide() const { return 8 * properties.multiProcessorCount; }  // blocks of a grid-stride kernel

  // Reading leaves no dirty lines, which would be written back inside the timed region.
  void flush() const { read_kernel<<<wide(), 256, 0, stream>>>(flusher, flusher_bytes / 16, sum); }

  int64_t differences(const char* a, const char* b, int64_t bytes) const {
    unsigned long long found;
    check(cudaMemsetAsync(count, 0, sizeof(found), stream));
    differences_kernel<<<wide(), 256, 0, stream>>>(reinterpret_cast<const uint32_t*>(a),
                                                   reinterpret_cast<const uint32_t*>(b), bytes / 4, count);
    check(cudaMemcpyAsync(&found, count, sizeof(found), cudaMemcpyDeviceToHost, stream));
    check(cudaStreamSynchronize(stream));
    return static_cast<int64_t>(found);
  }
};

struct Timer {
  cudaEvent_t start, end;
  Timer() {
    check(cudaEventCreate(&start));
    check(cudaEventCreate(&end));
  }
  template <class Run>
  void around(const Gpu& gpu, const Run& run) {
    check(cudaEventRecord(start, gpu.stream));
    run();
    check(cudaEventRecord(end, gpu.stream));
  }
  double microseconds() {
    float milliseconds;
    check(cudaEventSynchronize(end));
    check(cudaEventElapsedTime(&milliseconds, start, end));
    return 1e3 * milliseconds;
  }
};

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The median times of interleaved calls, in us. While the GPU reads the flusher, the host queues the timed call.
template <class Run>
std::vector<double> timed_in_turns(const Gpu& gpu, int calls, const Run& run) {
  std::vector<std::vector<double>> found(calls);
  std::vector<Timer> timers(calls);
  for (int round = 0; round <= kRounds; ++round) {
    for (int i = 0; i < calls; ++i) {
      gpu.flush();
      timers[i].around(gpu, [&] { run(i); });
    }
    for (int i = 0; i < calls; ++i) {
      const double us = timers[i].microseconds();
      if (round > 0) found[i].push_back(us);  // the first round loads kernels
    }
  }
  std::vector<double> medians;
  for (auto& values : found) medians.push_back(median(values));
  return medians;
}

// The median time of one of kLaunches calls in a CUDA graph, in us.
template <class Run>
double timed_in_graph(const Gpu& gpu, const Run& run) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  check(cudaStreamBeginCapture(gpu.stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < kLaunches; ++i) run();
  check(cudaStreamEndCapture(gpu.stream, &graph));
  check(cudaGraphInstantiate(&executable, graph, 0));
  std::vector<double> found;
  Timer timer;
  for (int round = 0; round <= kRounds; ++round) {
    timer.around(gpu, [&] { check(cudaGraphLaunch(executable, gpu.stream)); });
    const double us = timer.microseconds();
    if (round > 0) found.push_back(us / kLaunches);
  }
  check(cudaGraphExecDestroy(executable));
  check(cudaGraphDestroy(graph));
  return median(found);
}

}  // namespace gpu_time
