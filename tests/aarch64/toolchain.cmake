# Cross-compiles for 64-bit ARM: cmake --toolchain tests/aarch64/toolchain.cmake -DROPE_EXT_TORCH=OFF ...
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
