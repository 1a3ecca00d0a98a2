// The CPU kernels of each instruction set, and the choice between them.
#pragma once

#include "core/params.h"

namespace rope::cpu {

// One per instruction set, filled by rotate_cpu.cpp compiled with that set's flags.
struct Kernels {
  const char* isa;
  // x[i].out = rotated x[i].in, on at most `num_threads` threads. Rows outside the table are not read: the rotated
  // channels of the token become NaN.
  void (*rotate)(const Params&, int num_threads);
  // cos and sin are written with the gradient of the tables, one row per token: x[i].in is x, x[i].out is only read and
  // holds the gradient of the rotated x. Where all share a row (table_batches, table_heads 1) it gets the sum.
  void (*table_grad)(const Params&, int num_threads);
  // cos and sin are frequencies (axes > 0). Written, contiguous and in the type of arithmetic: x[0].out and x[1].out
  // with their cos and sin, (batch, seqlen, x[0].heads, pairs), 1 and 0 for tokens past the last boundary of
  // cu_seqlens; and x[2].out with the positions, (axes, batch, seqlen).
  void (*cos_sin)(const Params&, int num_threads);
};

// All instruction sets compiled in, best first; `count` receives their number.
const Kernels* const* compiled_kernels(int* count);

// Whether this machine can run `kernels`.
bool supported(const Kernels& kernels);

// The best supported ones, at most ATEN_CPU_CAPABILITY (default, avx2, avx512: PyTorch's own switch) when that is set.
// Chosen when the library is loaded.
const Kernels& best_kernels();

// Replaces them by the kernels of the caller; null: the best ones again. For tests, which build with
// ROPE_EXT_TEST_HOOKS.
void use_kernels(const Kernels* kernels);

}  // namespace rope::cpu
