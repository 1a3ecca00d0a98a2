// Macros that let g++ and nvcc compile the same headers.
#pragma once

// Internal linkage on purpose: every instruction set compiles its own copy of these functions. With weak symbols, the
// linker could pick the AVX-512 copy for a machine that has no AVX-512.
#if defined(__CUDACC__)
#define ROPE_INLINE_MEMBER __host__ __device__ __forceinline__
#define ROPE_INLINE static ROPE_INLINE_MEMBER
#elif defined(__GNUC__)
#define ROPE_INLINE_MEMBER inline __attribute__((always_inline))
#define ROPE_INLINE static ROPE_INLINE_MEMBER
#else
#define ROPE_INLINE_MEMBER inline
#define ROPE_INLINE static ROPE_INLINE_MEMBER
#endif

// Loads *data, of type T, in a single access that the compiler neither repeats nor splits: the value that is checked is
// the value that is used, even if another thread writes there. On a GPU it is a plain load, which the compiler may
// repeat, because a volatile load makes cos_sin_kernel<double> spill registers.
#if defined(__CUDA_ARCH__)
#define ROPE_LOAD_ONCE(T, data) (*static_cast<const T*>(data))
#else
#define ROPE_LOAD_ONCE(T, data) __atomic_load_n(static_cast<const T*>(data), __ATOMIC_RELAXED)
#endif

// Precedes a loop over an array that must stay in registers: nvcc then unrolls the loop completely.
#if defined(__CUDACC__)
#define ROPE_UNROLL _Pragma("unroll")
#else
#define ROPE_UNROLL
#endif
