// Function qualifiers that let one header be read by g++ and nvcc.
#pragma once

// Internal linkage on purpose: every instruction set compiles its own copy of these functions, and a weak symbol would
// let the linker hand the AVX-512 copy to a machine that has no AVX-512.
#if defined(__CUDACC__)
#define ROPE_INLINE static __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define ROPE_INLINE static inline __attribute__((always_inline))
#else
#define ROPE_INLINE static inline
#endif

// *data, of type T, in one load that the compiler neither repeats nor splits: the value that was compared is the one
// that is used, even while another thread writes there. On a GPU a plain load, which the compiler may repeat in
// principle: a volatile one spills registers of cos_sin_kernel<double>.
#if defined(__CUDA_ARCH__)
#define ROPE_LOAD_ONCE(T, data) (*static_cast<const T*>(data))
#else
#define ROPE_LOAD_ONCE(T, data) __atomic_load_n(static_cast<const T*>(data), __ATOMIC_RELAXED)
#endif

// Before a loop over an array that is to stay in registers: nvcc must unroll it whole.
#if defined(__CUDACC__)
#define ROPE_UNROLL _Pragma("unroll")
#else
#define ROPE_UNROLL
#endif
