// Calls of the CPU kernels on inputs that every machine makes alike, for tests/test_aarch64.py.
#pragma once

#include <cstdint>

namespace rope::cpu {
struct Kernels;
}

// Runs the case that `text` describes, words "name=integer", and returns a hash of all memory that the kernels may
// write. Any two NaN count as equal, because processors make NaN of different signs and payloads.
extern "C" uint64_t hash_of_case(const rope::cpu::Kernels* kernels, const char* text);
