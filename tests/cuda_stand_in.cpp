// The launches of csrc/cuda with a stand-in for the CUDA runtime, compiled by g++: kernels run on the CPU, block after
// block of the grid that they are launched with, and launches fail as told. For tests/test_launches.py, by ctypes.
//
// The threads of a block run one after another, or where they exchange numbers, each as a thread of the CPU.
//
// There is no cudaGetLastError here, so that launches that call it do not link.
#include <pthread.h>
#include <vector_types.h>

#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#define __launch_bounds__(...)
#undef __shared__
#define __shared__
#define ROPE_CUDA_STAND_IN
static uint3 blockIdx;
static thread_local uint3 threadIdx;
static dim3 blockDim, gridDim;

constexpr int kMostThreads = 1024, kLanes = 32;

// All threads of a warp, or of the block, wait for one another.
static pthread_barrier_t barriers_of_warps[kMostThreads / kLanes], barrier_of_block;
static void __syncwarp() { pthread_barrier_wait(&barriers_of_warps[threadIdx.x / kLanes]); }
static void __syncthreads() { pthread_barrier_wait(&barrier_of_block); }

template <class A>
static A __shfl_xor_sync(unsigned, A value, int mask) {
  static A values[kMostThreads];
  values[threadIdx.x] = value;
  __syncwarp();
  const A other = values[threadIdx.x ^ mask];
  __syncwarp();
  return other;
}

#include "bindings/launch_errors.cpp"
#include "cpu/isa.h"
#include "cuda/assert_positions.cu"
#include "cuda/norm_cuda.cu"
#include "cuda/norm_grad_cuda.cu"
#include "cuda/norm_plan.cpp"
#include "cuda/plan.cpp"
#include "cuda/revolutions.cu"
#include "cuda/rotate_cuda.cu"

namespace rope::cuda {
namespace {
double shared_memory[4096];
}
}  // namespace rope::cuda

using namespace rope;

namespace {

struct {
  dim3 grid, block;
  int64_t dynamic_shared_memory, attributes;
  void* stream;
  const void* first_argument;  // its address
  int launches, queries;       // counted from the start; queries of attributes of the device
} seen;

cudaError_t next_error = cudaSuccess;
const char* next_error_name = "";
int current_device = 0;
using RunThread = void (*)(const void* kernel, void** arguments);
RunThread run_thread;
std::map<const void*, RunThread> with_threads;  // kernels whose threads exchange numbers

template <class... P, size_t... kIndex>
void call(void (*kernel)(P...), void** arguments, std::index_sequence<kIndex...>) {
  kernel(*static_cast<P*>(arguments[kIndex])...);
}

// The kernels that are launched from here on have the parameters of this one.
template <class... P>
void launches_are_like(void (*)(P...)) {
  run_thread = [](const void* kernel, void** arguments) {
    call(reinterpret_cast<void (*)(P...)>(const_cast<void*>(kernel)), arguments, std::index_sequence_for<P...>());
  };
}

// The threads of this kernel exchange numbers.
template <class... P>
void runs_with_threads(void (*kernel)(P...)) {
  with_threads[reinterpret_cast<const void*>(kernel)] = [](const void* kernel, void** arguments) {
    call(reinterpret_cast<void (*)(P...)>(const_cast<void*>(kernel)), arguments, std::index_sequence_for<P...>());
  };
}

void run_block(const void* kernel, void** arguments) {
  const auto found = with_threads.find(kernel);
  if (found == with_threads.end()) {
    for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) run_thread(kernel, arguments);
    return;
  }
  const unsigned warps = blockDim.x / kLanes;
  pthread_barrier_init(&barrier_of_block, nullptr, blockDim.x);
  for (unsigned i = 0; i < warps; ++i) pthread_barrier_init(&barriers_of_warps[i], nullptr, kLanes);
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < blockDim.x; ++i) {
    threads.emplace_back([=] {
      threadIdx.x = i;
      found->second(kernel, arguments);
    });
  }
  for (std::thread& thread : threads) thread.join();
  pthread_barrier_destroy(&barrier_of_block);
  for (unsigned i = 0; i < warps; ++i) pthread_barrier_destroy(&barriers_of_warps[i]);
}

cuda::Stream some_stream() { return &seen; }

void rotate(const RotateParams& p, int) {
  if (cuda::plan_of(p, 132).width > 1) {
    launches_are_like(cuda::rotate_kernel<float, 4, Source::kPerPair>);
  } else {
    launches_are_like(cuda::rotate_kernel<float, 1, Source::kPerPair>);
  }
  cuda::rotate(p, current_device, some_stream());
}

// float32, with 16 bytes in an access and one row of the tables for all pairs, or element by element.
void norm_grad(const NormGradParams& p, int) {
  launches_are_like(cuda::rotate_kernel<float, 4, Source::kPerPair>);
  cuda::norm_grad(p, current_device, some_stream());
}

void table_grad(const TableGradParams& p, int) {
  launches_are_like(cuda::table_grad_kernel<float>);
  cuda::table_grad(p, some_stream());
}

void cos_sin(const CosSinParams& p, int) {
  launches_are_like(cuda::cos_sin_kernel<float>);
  cuda::cos_sin(p, some_stream());
}

constexpr cpu::Kernels kThroughLaunches = {"cuda", rotate, table_grad, cos_sin, norm_grad};

// What the kernel that takes them received.
int64_t received_integer;
const double* received_pointer;
void kernel_of_two(int64_t integer, const double* pointer) {
  received_integer = integer;
  received_pointer = pointer;
}

}  // namespace

extern "C" {

// ---- the runtime ----

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** arguments) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  seen = {grid,
          block,
          static_cast<int64_t>(config->dynamicSmemBytes),
          config->numAttrs,
          config->stream,
          arguments[0],
          ++seen.launches,
          seen.queries};
  if (next_error != cudaSuccess) return next_error;
  blockDim = block;
  gridDim = grid;
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z) {
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block(kernel, arguments);
    }
  }
  return cudaSuccess;
}

const char* cudaGetErrorName(cudaError_t error) { return error == next_error ? next_error_name : ""; }

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return next_error;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  ++seen.queries;
  *value = 132;
  return next_error;
}

// ---- for ctypes ----

const void* what_was_seen() { return &seen; }

// What the runtime returns from here on; 0: success. name: a string that the caller keeps.
void set_error(int error, const char* name) {
  next_error = static_cast<cudaError_t>(error);
  next_error_name = name;
}

void set_device(int device) { current_device = device; }

// A cpu::Kernels whose functions launch the CUDA kernels.
const void* kernels_through_launches() {
  runs_with_threads(cuda::norm_kernel<float, 4, Source::kPerPair>);
  runs_with_threads(cuda::norm_elements_kernel<float>);
  runs_with_threads(cuda::norm_grad_kernel<float, 4, Source::kPerPair>);
  runs_with_threads(cuda::norm_grad_elements_kernel<float>);
  runs_with_threads(cuda::block_sums_kernel<float>);
  return &kThroughLaunches;
}

// high and low receive the revolutions of radians; each has `pairs` numbers.
const char* launch_revolutions(const float* radians, int64_t pairs, float* high, float* low) {
  launches_are_like(cuda::revolutions_kernel<float, float>);
  const auto p = RevolutionsParams{radians, DType::kFloat32, 1, 1, pairs, 0, 0, 1, DType::kFloat32, high, low};
  return cuda::revolutions(p, some_stream());
}

// rows receives the rows of a call without positions, in a table without end.
const char* launch_table_rows(int64_t batch, int64_t seqlen, int64_t offset, int64_t* rows) {
  launches_are_like(cuda::table_rows_kernel);
  Tokens p = {batch, seqlen, {}};
  p.positions.offset = offset;
  p.positions.rows = INT64_MAX;
  return cuda::table_rows(p, rows, some_stream());
}

// Runs the debug mode ROPE_EXT_CHECK_POSITIONS on the rows of a packed sequence. A failed assert ends the process.
const char* launch_assert_positions(int64_t tokens, int64_t rows, int64_t nseq, const int64_t* cu_seqlens) {
  setvbuf(stdout, nullptr, _IONBF, 0);  // a buffer would be lost
  launches_are_like(cuda::assert_positions_kernel);
  Tokens p = {1, tokens, {}};
  p.positions.rows = rows;
  p.positions.nseq = nseq;
  p.positions.cu_seqlens = {cu_seqlens, true};
  p.positions.cu_seqlens_stride = 1;
  return cuda::assert_positions(p, some_stream());
}

// Whether a kernel receives its two arguments, the first of which is converted.
bool launch_two(int integer, const double* pointer) {
  launches_are_like(kernel_of_two);
  cuda::launch(kernel_of_two, dim3(1), dim3(1), some_stream(), integer, pointer);
  return received_integer == integer && received_pointer == pointer;
}

const char* launch_items(int64_t items) { return cuda::launch_per_item(kernel_of_two, items, nullptr, 0, nullptr); }

const char* too_large() { return cuda::kTooLarge; }

const char* message(const char* error, bool blocking, bool checks_positions) {
  static std::string text;
  text = launch_error(error, blocking, checks_positions);
  return text.c_str();
}

}  // extern "C"
