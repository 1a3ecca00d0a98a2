// The CUDA kernels, launched: like cpu/isa.h, for memory of a GPU.
#pragma once

#include "core/params.h"

namespace rope::cuda {

// A cudaStream_t; the device it belongs to is the current one.
using Stream = void*;

// Each returns null, or the CUDA runtime's name for what went wrong with the launch; none waits for the GPU.

// x[i].out = rotated x[i].in. Rows outside the table are not read: the token's rotated channels become NaN.
const char* rotate(const Params& p, int device, Stream stream);

// cos and sin are written with the gradient of the tables, one row per token, as by cpu::Kernels::table_grad.
const char* table_grad(const Params& p, int device, Stream stream);

// rows[batch * seqlen + token] = table_row, for the `batch` of p.
const char* table_rows(const Params& p, int64_t* rows, int device, Stream stream);

// Stops the program on the GPU, with a message that names the first tokens whose row lies outside the table.
const char* assert_positions(const Params& p, int device, Stream stream);

}  // namespace rope::cuda
