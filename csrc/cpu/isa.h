// The CPU kernels of each instruction set, and the choice between them.
#pragma once

#include "core/params.h"

namespace rope::cpu {

// The kernels of one instruction set: rotate_cpu.cpp, compiled with that set's flags.
struct Kernels {
  const char* isa;
  // x[i].out = rotated x[i].in, normalised first where norm[i] has a weight, on at most `num_threads` threads. A row
  // outside the table is not read: the token's rotated channels become NaN.
  void (*rotate)(const RotateParams&, int num_threads);
  // cos and sin receive the gradients of the tables: sums over all x[i], and over batch and heads where they share a
  // row (table_batches, table_heads 1).
  void (*table_grad)(const TableGradParams&, int num_threads);
  // cos_out and sin_out receive cos and sin of the angles, 1 and 0 for tokens past the last boundary of cu_seqlens;
  // positions_out the positions with their offsets, 0 for those tokens.
  void (*cos_sin)(const CosSinParams&, int num_threads);
  // x[i].out, unless it is null, and of_norm[i].grad_weight, unless of_norm[i].block_sums is null, receive the
  // gradients of x[i] and of its weight.
  void (*norm_grad)(const NormGradParams&, int num_threads);
};

// All instruction sets compiled in, best first; `count` receives their number.
const Kernels* const* compiled_kernels(int* count);

// Whether this machine can run `kernels`.
bool supported(const Kernels& kernels);

// The best supported kernels, limited by ATEN_CPU_CAPABILITY (default, avx2, avx512: PyTorch's own switch) when that is
// set. Chosen when the library is loaded.
const Kernels& best_kernels();

// Makes best_kernels() return `kernels`; null undoes it. For tests: defined only with ROPE_EXT_TEST_HOOKS.
void use_kernels(const Kernels* kernels);

}  // namespace rope::cpu
