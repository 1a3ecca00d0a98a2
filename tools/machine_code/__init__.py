"""Execute the machine code of the CUDA kernels for compute capability 9.0 on the CPU.

`disassembly` reads the kernels of a library, `warps` executes them, `memory` says which bytes they may access.
"""
