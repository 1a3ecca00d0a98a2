// Reads cases from standard input, one a line, and prints for each instruction set its name and the hashes of all
// cases. The first line of the output names the instruction set that the library would choose.
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "cases.h"
#include "cpu/isa.h"

using namespace rope::cpu;

int main() {
  std::vector<std::string> cases;
  for (std::string line; std::getline(std::cin, line);) cases.push_back(line);
  std::printf("%s\n", best_kernels().isa);
  int count;
  const Kernels* const* compiled = compiled_kernels(&count);
  for (int i = 0; i < count; ++i) {
    if (!supported(*compiled[i])) continue;
    std::printf("%s", compiled[i]->isa);
    for (const std::string& line : cases) std::printf(" %llu", 0ull + hash_of_case(compiled[i], line.c_str()));
    std::printf("\n");
  }
}
