// The launches of the CUDA kernels: what cpu/isa.h is for the CPU.
#pragma once

#include "core/params.h"
#include "core/revolutions.h"

namespace rope::cuda {

// A cudaStream_t of the current device.
using Stream = void*;

// The current device, or -1 if there is none.
int current_device();

// A launch does not wait for the GPU. It returns null; the CUDA runtime's name of the error, which may be that of
// earlier work on the GPU; or kTooLarge, where the indices of a call need more than 32 bits (too_large in plan.h), or
// its grid more blocks than there are.
extern const char* const kTooLarge;

// The contract is that of cpu::Kernels::rotate, on the current device, `device`.
const char* rotate(const RotateParams& p, int device, Stream stream);

// The contract is that of cpu::Kernels::norm_grad, on the current device, `device`.
const char* norm_grad(const NormGradParams& p, int device, Stream stream);

// The contract is that of cpu::Kernels::table_grad.
const char* table_grad(const TableGradParams& p, Stream stream);

// rows[batch * p.seqlen + token] = table_row(p.positions, batch, token), in memory of the GPU.
const char* table_rows(const Tokens& p, int64_t* rows, Stream stream);

// The contract is that of cpu::Kernels::cos_sin.
const char* cos_sin(const CosSinParams& p, Stream stream);

// p.high and p.low receive the revolutions per position, in memory of the GPU.
const char* revolutions(const RevolutionsParams& p, Stream stream);

// Fails an assert on the GPU, with a message for each token whose row lies outside the table.
const char* assert_positions(const Tokens& p, Stream stream);

}  // namespace rope::cuda
