// The ops. What Python makes of them, derivatives included, is in rope_ext/.
#include <torch/csrc/stable/library.h>

// Shared by all ops: struct Arguments in check.h, field by field. `flags` packs four small ones: the stable ABI
// costs 0.4 us per argument and call, and leaks the memory of a str.
#define ROPE_ARGUMENTS(X)                                                                                 \
  X " x, Tensor cos, Tensor sin, Tensor? positions, Tensor? offsets, Tensor? cu_seqlens, SymInt offset, " \
    "int flags, SymInt? rotary_dim, SymInt rotary_offset"

STABLE_TORCH_LIBRARY(rope_ext, m) {
  // The rotated x, each with the strides of torch.empty_like(x). `transposed` applies the transposed 2x2 blocks, which
  // is the gradient with respect to x.
  m.def("rotate(" ROPE_ARGUMENTS("Tensor[]") ") -> Tensor[]");
  m.def("rotate_(" ROPE_ARGUMENTS("Tensor(a!)[]") ") -> ()");
  m.def("rotate_out(" ROPE_ARGUMENTS("Tensor[]") ", Tensor(a!)[] out) -> ()");
  // Raises what rotate_ would raise, and does nothing else.
  m.def("check_in_place(" ROPE_ARGUMENTS("Tensor[]") ") -> ()");
  // Gradients of cos and sin, which have one row per token here: grad * d rotate(x) / d table, summed over what the
  // tables broadcast.
  m.def("table_grad(" ROPE_ARGUMENTS("Tensor[]") ", Tensor[] grad) -> (Tensor, Tensor)");
  // (batch or 1, seqlen) int64: the row of the table that each token reads; -1: the token is not rotated; -2: it leads
  // outside the table (on a GPU; on a CPU that is an error).
  m.def("table_rows(" ROPE_ARGUMENTS("Tensor[]") ") -> Tensor");
}
