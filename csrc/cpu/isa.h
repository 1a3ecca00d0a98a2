// The CPU kernels of each instruction set, and the selection among them.
#pragma once

#include "core/params.h"

namespace rope::cpu {

// The kernels of one instruction set: rotate_cpu.cpp, compiled with that set's flags.
struct Kernels {
  const char* isa;
  // x[i].out = rotated x[i].in, normalized first if norm[i] has a weight, on at most `num_threads` threads. A row
  // outside the table is not read: the token's rotated channels become NaN.
  void (*rotate)(const RotateParams&, int num_threads);
  // cos and sin receive the gradients of the tables: sums over all x[i], and over batch or heads if these share a row
  // (table_batches or table_heads 1).
  void (*table_grad)(const TableGradParams&, int num_threads);
  // cos_out and sin_out receive cos and sin of the angles, 1 and 0 for tokens past the last boundary of cu_seqlens;
  // positions_out the positions with their offsets, 0 for those tokens.
  void (*cos_sin)(const CosSinParams&, int num_threads);
  // Unless null, x[i].out receives the gradient of x[i]; unless block_sums is null, of_norm[i].grad_weight receives the
  // gradient of its weight.
  void (*norm_grad)(const NormGradParams&, int num_threads);
};

// The kernels of all compiled instruction sets, best first; `count` receives their number.
const Kernels* const* compiled_kernels(int* count);

// Whether this machine can run `kernels`.
bool supported(const Kernels& kernels);

// The best supported kernels, limited by ATEN_CPU_CAPABILITY (default, avx2, avx512: PyTorch's own switch) when that is
// set. Chosen when the library is loaded.
const Kernels& best_kernels();

// Makes best_kernels() return `kernels`; null undoes it. For tests: defined only with ROPE_EXT_TEST_HOOKS.
void use_kernels(const Kernels* kernels);

}  // namespace rope::cpu
