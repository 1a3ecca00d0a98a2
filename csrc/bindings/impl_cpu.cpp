// The ops on CPU tensors.
#include "bindings/errors.h"
#include "bindings/library.h"
#include "bindings/ops.h"
#include "bindings/output.h"
#include "cpu/isa.h"
#include "cpu/weights.h"

namespace rope {
namespace {

struct Cpu {
  static Tensor empty_like(const Tensor& x, bool* unmapped) { return empty_like_output(x, unmapped); }

  static void rotate(RotateParams& p, const Tensor&) {
    const cpu::Weights weights(&p);
    cpu::best_kernels().rotate(p, num_threads());
  }

  static void norm_grad(NormGradParams p, const Tensor&) {
    const cpu::Weights weights(&p);
    cpu::best_kernels().norm_grad(p, num_threads());
  }

  static void table_grad(const TableGradParams& p, const Tensor&) { cpu::best_kernels().table_grad(p, num_threads()); }

  static void cos_sin(const CosSinParams& p, const Tensor&) { cpu::best_kernels().cos_sin(p, num_threads()); }

  // Runs on the calling thread, compiled for the baseline instruction set: there are few frequencies.
  static void revolutions(const RevolutionsParams& p, const Tensor&) {
    dispatch_revolutions(p, [&](auto t, auto a) {
      for (int64_t axis = 0; axis < p.axes; ++axis) {
        for (int64_t head = 0; head < p.heads; ++head) {
          for (int64_t pair = 0; pair < p.pairs; ++pair) {
            make_revolutions<typename decltype(t)::type, typename decltype(a)::type>(p, axis, head, pair);
          }
        }
      }
    });
  }

  static void table_rows(const Tokens& p, int64_t* rows, bool checked, const Tensor&) {
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t s = 0; s < p.seqlen; ++s) {
        const int64_t row = *rows++ = table_row(p.positions, b, s);
        if (checked && row == kOutside) {
          bad_value("positions", "not change during a call", "a row that has moved outside the table");
        }
      }
    }
  }

 private:
  static int num_threads() { return static_cast<int>(torch::stable::get_num_threads()); }
};

[[maybe_unused]] const bool registered = register_kernels<Ops<Cpu>>("CPU");

}  // namespace
}  // namespace rope

// ---- for ctypes ----

// The name of the instruction set whose kernels the ops use (rope_ext/_torch/library.py).
extern "C" __attribute__((visibility("default"))) const char* rope_ext_cpu_isa() {
  return rope::cpu::best_kernels().isa;
}

#ifdef ROPE_EXT_TEST_HOOKS
// Exports cpu::use_kernels to tests. An installed library must not have it: it lets any caller run arbitrary code.
extern "C" __attribute__((visibility("default"))) void rope_ext_use_cpu_kernels(const void* kernels) {
  rope::cpu::use_kernels(static_cast<const rope::cpu::Kernels*>(kernels));
}
#endif
