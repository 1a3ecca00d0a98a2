// Defines the schemas of the ops. Python adds the rest, such as derivatives, in rope_ext/_torch/.
#include <dlfcn.h>

#include <cstdio>
#include <exception>

#include "bindings/library.h"

// The arguments of the ops are the fields of struct Arguments (arguments.h). Passing an argument costs 0.2 to 0.3 us
// per call, leaving a trailing one at its default 0.04 us. Hence their order, and `flags`, which packs the small ones
// (core/flags.h); a str argument would leak its memory. With kFrequencies in `flags`, cos and sin are not tables but
// the high and low parts of inv_freq in revolutions per position, each (axes, heads or 1, pairs); the kernels compute
// cos and sin from the positions (core/angles.h) and multiply them by attention_scaling.
#define ROPE_PLAIN_ARGUMENTS(X) X " x, Tensor cos, Tensor sin, SymInt offset=0, int flags=0"
#define ROPE_ARGUMENTS(X)                                                            \
  ROPE_PLAIN_ARGUMENTS(X)                                                            \
  ", SymInt? rotary_dim=None, SymInt rotary_offset=0, float attention_scaling=1.0, " \
  "Tensor? positions=None, Tensor? offsets=None, Tensor? cu_seqlens=None"
// norm: the weight of the RMSNorm of each tensor of x, (head_dim,), or None for a tensor that is not normalized.
#define ROPE_NORM_ARGUMENTS(X) ROPE_ARGUMENTS(X) ", Tensor?[]? norm=None, float eps=0.0"

// The overload `unrecorded` is for callers that know that no derivative is recorded: it has no Python kernels, while
// the default overload has those of rope_ext/_torch/kernels.py. The overload `plain` is `unrecorded` without the
// arguments after `flags`, which saves the cost of their defaults. Both are defined after the default overload, because
// a call that names no overload resolves to the first that matches.
#define ROPE_DEF(NAME, OUT, X, RESULT)                                  \
  m.def(NAME "(" OUT ROPE_NORM_ARGUMENTS(X) ") -> " RESULT);            \
  m.def(NAME ".unrecorded(" OUT ROPE_NORM_ARGUMENTS(X) ") -> " RESULT); \
  m.def(NAME ".plain(" OUT ROPE_PLAIN_ARGUMENTS(X) ") -> " RESULT)

namespace rope {
namespace {

struct Definitions {
  TorchLibraryHandle library;
  void def(const char* schema) { TORCH_ERROR_CODE_CHECK(aoti_torch_library_def(library, schema)); }
};

void define_all(Definitions m) {
  // Returns the rotated x, each with the strides of torch.empty_like(x). With kTransposed in `flags`, x is the gradient
  // of a result, and the op returns the gradient of x. With `norm`, x is normalized first.
  ROPE_DEF("rotate", "", "Tensor[]", "Tensor[]");
  ROPE_DEF("rotate_", "", "Tensor(a!)[]", "()");
  ROPE_DEF("rotate_out", "Tensor(a!)[] out, ", "Tensor[]", "()");
  // Raises what rotate would raise, and does nothing else. For global shapes, of which each process holds only a part.
  m.def("check(" ROPE_NORM_ARGUMENTS("Tensor[]") ") -> ()");
  // Raises what rotate_ would raise, and does nothing else.
  m.def("check_in_place(" ROPE_NORM_ARGUMENTS("Tensor[]") ") -> ()");
  // Unboxes its arguments and does nothing: measures the cost of the dispatcher and the stable ABI
  // (rope_ext/profile.py).
  ROPE_DEF("nothing", "", "Tensor[]", "()");
  // rotate with `norm`, which also returns what its derivative needs: 1 / rms of each head, (batch or 1, seqlen,
  // heads), contiguous, of the arithmetic type; without elements for tensors that are not normalized.
  m.def("norm_rotate(" ROPE_NORM_ARGUMENTS("Tensor[]") ") -> (Tensor[] y, Tensor[] inv_rms)");
  // The gradients of `input` and of the weights of norm_rotate(input). x holds the gradients of y, and `flags` those of
  // the transposed rotation. wanted: bit i requests the gradient of input[i], bit 8 + i that of norm[i]; gradients not
  // requested have no elements. Gradients of weights have the arithmetic type. norm_grad_out writes the gradients of
  // all of `input` to `out`.
  m.def("norm_grad(Tensor[] input, Tensor[] inv_rms, int wanted, " ROPE_NORM_ARGUMENTS(
      "Tensor[]") ") -> (Tensor[] grad_input, Tensor[] grad_norm)");
  m.def("norm_grad_out(Tensor(a!)[] out, Tensor[] input, Tensor[] inv_rms, int wanted, " ROPE_NORM_ARGUMENTS(
      "Tensor[]") ") -> Tensor[]");
  // An uninitialized result like x, from the output pool if it is enabled.
  m.def("empty_like(Tensor x) -> Tensor");
  // The gradients of cos and sin, tables with one row per token: grad * d rotate(x) / d table, summed over the axes
  // along which the tables broadcast.
  m.def("table_grad(Tensor[] grad, " ROPE_ARGUMENTS("Tensor[]") ") -> (Tensor, Tensor)");
  // (batch or 1, seqlen) int64: the row of the table that each token reads; -1: the token is not rotated; -2: the row
  // is outside the table (on a GPU; on a CPU this raises, unless batch is 0).
  m.def("table_rows(" ROPE_ARGUMENTS("Tensor[]") ") -> Tensor");
  // Returns cos and sin as rotate computes them from frequencies, (batch or 1, seqlen, heads or 1, pairs), 1 and 0 for
  // tokens that are not rotated; and the positions plus offsets, (axes, batch or 1, seqlen). All have the arithmetic
  // type.
  m.def("cos_sin(" ROPE_ARGUMENTS("Tensor[]") ") -> (Tensor, Tensor, Tensor)");
  // Converts inv_freq, in radians per position, to revolutions per position: the sum of `high` and `low`, which are cos
  // and sin of the ops above with kFrequencies. (axes or 1, heads or 1, pairs), float32, or float64 if is_64.
  // `unrecorded`: see ROPE_DEF.
  m.def("revolutions(Tensor inv_freq, bool is_64) -> (Tensor high, Tensor low)");
  m.def("revolutions.unrecorded(Tensor inv_freq, bool is_64) -> (Tensor high, Tensor low)");
}

// Not STABLE_TORCH_LIBRARY, which ignores torch's error and continues with an invalid handle.
bool define_ops() {
  TorchLibraryHandle library = nullptr;  // lives as long as the process
  if (aoti_torch_library_init_def(op_namespace(), own_file(), 0, &library) != AOTI_TORCH_SUCCESS) {
    std::fprintf(stderr, "rope_ext: %s registers nothing: another copy of it is loaded in this process\n", own_file());
    return false;
  }
  try {
    define_all({library});
  } catch (const std::exception& error) {  // an op of this name exists already; torch has printed which
    std::fprintf(stderr, "rope_ext: %s registers nothing: %s\n", own_file(), error.what());
    return false;
  }
  return true;
}

}  // namespace

const char* own_file() {
  Dl_info info;
  return dladdr(reinterpret_cast<void*>(&define_ops), &info) && info.dli_fname ? info.dli_fname : "_ops.so";
}

const char* op_namespace() { return ROPE_NAMESPACE; }

bool defines_ops() {
  static const bool defines = define_ops();
  return defines;
}

[[maybe_unused]] static const bool defined_at_load = defines_ops();

}  // namespace rope

bool rope_ext_defines_ops() { return rope::defines_ops(); }

const char* rope_ext_namespace() { return rope::op_namespace(); }
