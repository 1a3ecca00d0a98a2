"""csrc/cuda/divisor.h: the CUDA kernel divides by multiplying, and every quotient and remainder is exact."""

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]

DIVISIONS = """
#include <cstdio>
#include <random>

#include "cuda/divisor.h"

// Quotients beside each multiple of a divisor are those that an inexact factor gets wrong.
template <class Int>
int wrong(int64_t by, int64_t multiple) {
  const int64_t end = int64_t{1} << rope::cuda::Divisor<Int>::kBits;
  const auto divisor = rope::cuda::divisor_of<Int>(by);
  int count = 0;
  for (int64_t n = multiple / by * by - 1; n < multiple / by * by + 2; ++n) {
    if (n < 0 || n >= end) continue;
    const auto number = static_cast<Int>(n);
    const Int quotient = rope::cuda::quotient(number, divisor);
    count += quotient != n / by || remainder(number, quotient, divisor) != n % by;
  }
  return count;
}

template <class Int>
int wrong(std::mt19937_64* random) {
  const int bits = rope::cuda::Divisor<Int>::kBits;
  const int64_t last = (int64_t{1} << bits) - 1;
  int count = 0;
  for (int shift = 0; shift < bits; ++shift) {
    for (int i = 0; i < 20000; ++i) {
      const int64_t power = int64_t{1} << shift, by = i < 3 ? power - 1 + i : power + (*random)() % power;
      if (by < 1 || by > last) continue;
      count += wrong<Int>(by, (*random)() & last) + wrong<Int>(by, last);
    }
  }
  return count;
}

int main() {
  std::mt19937_64 random(1);
  std::printf("%d %d", wrong<int>(&random), wrong<int64_t>(&random));
}
"""


def test_division_by_a_multiplication_is_exact(tmp_path):
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("needs g++")
    source, program = tmp_path / "divisions.cpp", tmp_path / "divisions"
    source.write_text(DIVISIONS)
    subprocess.run([compiler, "-std=c++17", "-O1", f"-I{ROOT / 'csrc'}", source, "-o", program], check=True)
    assert subprocess.run([program], check=True, capture_output=True, text=True).stdout == "0 0"
