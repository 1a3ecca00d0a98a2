// The debug mode ROPE_EXT_CHECK_POSITIONS: asserts that every position is in the table. Not in rotate_cuda.cu, where
// any use of a stack, which printf needs, is a build error.
#undef NDEBUG  // keeps assert in device code
#include <cassert>
#include <cinttypes>
#include <cstdio>

#include "core/positions.h"
#include "cuda/launch.cuh"

namespace rope::cuda {
namespace {

__global__ void __launch_bounds__(kBlock) assert_positions_kernel(const __grid_constant__ Tokens p) {
  const int64_t i = index_of_thread();
  if (i >= p.batch * p.seqlen) return;
  const int64_t batch = i / p.seqlen, token = i % p.seqlen;
  const bool leads_to_a_row_of_the_table = table_row(p.positions, batch, token) != kOutside;
  if (leads_to_a_row_of_the_table) return;
  const int64_t start = sequence_start(p.positions, token);
  if (start == kOutside) {
    printf("rope_ext: cu_seqlens must start at 0 and ascend, got a negative boundary before token %" PRId64 "\n",
           token);
  } else {
    printf("rope_ext: positions must index rows 0 to %" PRId64 " of the table, got row %" PRId64 " for token %" PRId64
           " of batch %" PRId64 "\n",
           p.positions.rows - 1, position_with_offset(p.positions, batch, token, start), token, batch);
  }
  assert(leads_to_a_row_of_the_table);
}

}  // namespace

const char* assert_positions(const Tokens& p, Stream stream) {
  return launch_per_item(assert_positions_kernel, p.batch * p.seqlen, stream, p);
}

}  // namespace rope::cuda
