"""The machine code of the CUDA kernels, executed on the CPU: what a GPU of compute capability 9.0 would do with it.

disassembly reads the kernels out of a library, warps executes them, memory says which bytes they may touch.
"""
