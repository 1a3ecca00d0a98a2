// The kernel that makes revolutions per position, and its launch.
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
  const int64_t threads = revolutions_threads(p);
  if (threads == 0) return nullptr;
  dispatch_revolutions(p, [&](auto t, auto a) {
    revolutions_kernel<typename decltype(t)::type, typename decltype(a)::type>
        <<<grid_for(threads), kBlock, 0, stream_of(stream)>>>(p);
  });
  return launched();
}

}  // namespace rope::cuda
