// Launches the CUDA kernels; the counterpart of cpu/isa.h.
#pragma once

#include "core/params.h"
#include "core/revolutions.h"

namespace rope::cuda {

// A cudaStream_t of the current device.
using Stream = void*;

// The current device, or -1 if there is none.
int current_device();

// Launches are asynchronous. They return null on success; the CUDA runtime's name of the error, which earlier work on
// the GPU may have caused; or kTooLarge, if an index of the call exceeds 32 bits (too_large in plan.h) or its grid
// exceeds the maximum size.
extern const char* const kTooLarge;

// Launches the rotation that cpu::Kernels::rotate computes. `device` must be the current device.
const char* rotate(const RotateParams& p, int device, Stream stream);

// Launches the gradients that cpu::Kernels::norm_grad computes. `device` must be the current device.
const char* norm_grad(const NormGradParams& p, int device, Stream stream);

// Launches the gradients of cos and sin that cpu::Kernels::table_grad computes.
const char* table_grad(const TableGradParams& p, Stream stream);

// rows[batch * p.seqlen + token] = table_row(p.positions, batch, token), in GPU memory.
const char* table_rows(const Tokens& p, int64_t* rows, Stream stream);

// Launches the cos and sin that cpu::Kernels::cos_sin computes.
const char* cos_sin(const CosSinParams& p, Stream stream);

// p.high and p.low, in GPU memory, receive the revolutions per position.
const char* revolutions(const RevolutionsParams& p, Stream stream);

// Fails an assert on the GPU, after printing a message, for each token whose row is outside the table.
const char* assert_positions(const Tokens& p, Stream stream);

}  // namespace rope::cuda
