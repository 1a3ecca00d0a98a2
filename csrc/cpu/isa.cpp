// Selects the CPU kernels, once. Compiled for the baseline instruction set, because it runs before the machine's
// instruction set is known.
#include "cpu/isa.h"

#ifdef ROPE_ISA_ARM
#include <sys/auxv.h>
#endif

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace rope::cpu {

#ifdef ROPE_ISA_X86
extern const Kernels kernels_avx512_bf16, kernels_avx512, kernels_avx2;
#elif defined(ROPE_ISA_ARM)
extern const Kernels kernels_neon_bf16;
#endif
extern const Kernels kernels_default;

static const Kernels* const kCompiled[] = {
#ifdef ROPE_ISA_X86
    &kernels_avx512_bf16,
    &kernels_avx512,
    &kernels_avx2,
#elif defined(ROPE_ISA_ARM)
    &kernels_neon_bf16,
#endif
    &kernels_default,
};
constexpr int kCount = sizeof(kCompiled) / sizeof(kCompiled[0]);

const Kernels* const* compiled_kernels(int* count) {
  *count = kCount;
  return kCompiled;
}

bool supported(const Kernels& kernels) {
#ifdef ROPE_ISA_X86
  if (&kernels == &kernels_avx512_bf16) return supported(kernels_avx512) && __builtin_cpu_supports("avx512bf16");
  if (&kernels == &kernels_avx512) {
    return supported(kernels_avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  if (&kernels == &kernels_avx2) {  // AVX2 implies F16C, which older compilers cannot query
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
  }
#elif defined(ROPE_ISA_ARM)
  constexpr int kBf16 = 1 << 14;  // HWCAP2_BF16, which older C libraries do not define
  if (&kernels == &kernels_neon_bf16) return getauxval(AT_HWCAP2) & kBf16;
#endif
  return &kernels == &kernels_default;
}

static const Kernels& choose() {
#ifdef ROPE_ISA_X86
  __builtin_cpu_init();
#endif
  const char* requested = std::getenv("ATEN_CPU_CAPABILITY");
  int first = 0;
  for (int i = 0; requested && i < kCount; ++i) {
    if (!std::strcmp(requested, kCompiled[i]->isa)) first = i;
  }
  while (!supported(*kCompiled[first])) ++first;  // stops at kernels_default, which run everywhere
  return *kCompiled[first];
}

#ifdef ROPE_EXT_TEST_HOOKS
static std::atomic<const Kernels*> replacement{nullptr};

void use_kernels(const Kernels* kernels) { replacement.store(kernels); }
#endif

// Initialized when the library is loaded, as all state: see bindings/output.cpp.
static const Kernels& best = choose();

const Kernels& best_kernels() {
#ifdef ROPE_EXT_TEST_HOOKS
  if (const Kernels* other = replacement.load(std::memory_order_relaxed)) return *other;
#endif
  return best;
}

}  // namespace rope::cpu
