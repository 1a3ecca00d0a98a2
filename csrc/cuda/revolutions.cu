// The kernel that converts frequencies to revolutions per position, and its launch.
#include "cuda/launch.cuh"
#include "cuda/revolutions.cuh"

namespace rope::cuda {
namespace {

template <class T, class A>
__global__ void __launch_bounds__(kBlock) revolutions_kernel(const __grid_constant__ RevolutionsParams p) {
  revolutions_thread<T, A>(p, index_of_thread());
}

}  // namespace

const char* revolutions(const RevolutionsParams& p, Stream stream) {
  const char* error = nullptr;
  dispatch_revolutions(p, [&](auto t, auto a) {
    error = launch_per_item(revolutions_kernel<typename decltype(t)::type, typename decltype(a)::type>,
                            revolutions_threads(p), stream, p);
  });
  return error;
}

}  // namespace rope::cuda
