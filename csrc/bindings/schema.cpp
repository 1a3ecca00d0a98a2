// The definitions of the ops. What Python adds, derivatives included, is in rope_ext/_torch/.
#include <dlfcn.h>

#include <cstdio>
#include <exception>

#include "bindings/library.h"

// The arguments of the ops: struct Arguments in arguments.h, field by field. An argument that is passed costs
// 0.2 to 0.3 us a call, a default at the end 0.04 us: hence their order, and `flags`, which packs the small ones
// (core/flags.h; a str would leak its memory).
// With kFrequencies in `flags`, cos and sin are not tables but the high and low parts of inv_freq in revolutions per
// position, each (axes, heads or 1, pairs); the kernels compute cos and sin from the positions (core/angles.h) and
// multiply them by attention_scaling.
#define ROPE_PLAIN_ARGUMENTS(X) X " x, Tensor cos, Tensor sin, SymInt offset=0, int flags=0"
#define ROPE_ARGUMENTS(X)                                                            \
  ROPE_PLAIN_ARGUMENTS(X)                                                            \
  ", SymInt? rotary_dim=None, SymInt rotary_offset=0, float attention_scaling=1.0, " \
  "Tensor? positions=None, Tensor? offsets=None, Tensor? cu_seqlens=None"
// norm: the weight of the RMSNorm of each tensor of x, (head_dim,), or None where a tensor is not normalised.
#define ROPE_NORM_ARGUMENTS(X) ROPE_ARGUMENTS(X) ", Tensor?[]? norm=None, float eps=0.0"

// The overload `unrecorded` is for callers that know that no derivative is recorded: it has no kernels in Python, where
// the default overload has those of rope_ext/_torch/kernels.py. The overload `plain` is `unrecorded` for calls that
// leave the arguments after `flags` at their defaults: six defaults less. Both are defined after the default overload,
// because a call that names none takes the first that fits.
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
  // The rotated x, each with the strides of torch.empty_like(x); with kTransposed in `flags`, applied to the gradient
  // of a result, the gradient of x. With `norm`, x is normalised first.
  ROPE_DEF("rotate", "", "Tensor[]", "Tensor[]");
  ROPE_DEF("rotate_", "", "Tensor(a!)[]", "()");
  ROPE_DEF("rotate_out", "Tensor(a!)[] out, ", "Tensor[]", "()");
  // Raises what rotate would raise; does nothing else. For shapes of which a process has but a part.
  m.def("check(" ROPE_NORM_ARGUMENTS("Tensor[]") ") -> ()");
  // Raises what rotate_ would raise; does nothing else.
  m.def("check_in_place(" ROPE_NORM_ARGUMENTS("Tensor[]") ") -> ()");
  // Takes the arguments and does nothing: the price of the dispatcher and the stable ABI (rope_ext/profile.py).
  ROPE_DEF("nothing", "", "Tensor[]", "()");
  // rotate with `norm`, and what its derivative needs: the factor 1 / rms of each head, (batch or 1, seqlen, heads), of
  // the type of arithmetic, contiguous; no elements where a tensor is not normalised.
  m.def("norm_rotate(" ROPE_NORM_ARGUMENTS("Tensor[]") ") -> (Tensor[] y, Tensor[] inv_rms)");
  // The gradients of `input` and of the weights in norm_rotate(input): x holds the gradients of y, and `flags` are
  // those of the transposed rotation. wanted: bit i for input[i], bit 8 + i for norm[i]; the others have no elements.
  // Those of weights have the type of arithmetic. norm_grad_out writes the gradients of all of `input` to `out`.
  m.def("norm_grad(Tensor[] input, Tensor[] inv_rms, int wanted, " ROPE_NORM_ARGUMENTS(
      "Tensor[]") ") -> (Tensor[] grad_input, Tensor[] grad_norm)");
  m.def("norm_grad_out(Tensor(a!)[] out, Tensor[] input, Tensor[] inv_rms, int wanted, " ROPE_NORM_ARGUMENTS(
      "Tensor[]") ") -> Tensor[]");
  // Uninitialised memory for a result like x, from the pool where that is on.
  m.def("empty_like(Tensor x) -> Tensor");
  // The gradients of cos and sin, which have one row per token: grad * d rotate(x) / d table, summed over the axes
  // along which the tables broadcast.
  m.def("table_grad(Tensor[] grad, " ROPE_ARGUMENTS("Tensor[]") ") -> (Tensor, Tensor)");
  // (batch or 1, seqlen) int64: the row of the table that each token reads; -1: the token is not rotated; -2: the row
  // lies outside the table (on a GPU; on a CPU that is an error, unless batch is 0).
  m.def("table_rows(" ROPE_ARGUMENTS("Tensor[]") ") -> Tensor");
  // cos and sin as rotate computes them from frequencies, (batch or 1, seqlen, heads or 1, pairs), 1 and 0 for tokens
  // that are not rotated; the positions with their offsets, (axes, batch or 1, seqlen). All in the type of arithmetic.
  m.def("cos_sin(" ROPE_ARGUMENTS("Tensor[]") ") -> (Tensor, Tensor, Tensor)");
  // The high and the low part of inv_freq, radians per position, in revolutions per position: what the ops above take
  // for cos and sin with kFrequencies. (axes or 1, heads or 1, pairs), float32 or float64. `unrecorded`: see ROPE_DEF.
  m.def("revolutions(Tensor inv_freq, bool is_64) -> (Tensor high, Tensor low)");
  m.def("revolutions.unrecorded(Tensor inv_freq, bool is_64) -> (Tensor high, Tensor low)");
}

// Not STABLE_TORCH_LIBRARY, which ignores torch's error and continues with an invalid handle.
bool define_ops() {
  TorchLibraryHandle library = nullptr;  // torch keeps it as long as the process lives
  if (aoti_torch_library_init_def(op_namespace(), own_file(), 0, &library) != AOTI_TORCH_SUCCESS) {
    std::fprintf(stderr, "rope_ext: %s registers nothing: another copy of it is loaded in this process\n", own_file());
    return false;
  }
  try {
    define_all({library});
  } catch (const std::exception& error) {  // something else defines an op of this name; torch has printed what
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
