"""csrc/cuda/plan.cpp and norm_plan.cpp: grids that CUDA accepts, with a thread for each unit, and no number beyond its
type. No kernel runs."""

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.devices("cpu")
ROOT = Path(__file__).resolve().parents[1]

PLANS = """
#include <cstdio>
#include <initializer_list>
#include <random>

#include "core/norm.h"
#include "cuda/norm_plan.h"
#include "cuda/plan.h"

using namespace rope;
using namespace rope::cuda;

int failures = 0, compact = 0, rounds_limited = 0, in_warps = 0, sliced = 0;
void expect(bool holds, const char* what, const RotateParams& p) {
  if (holds || ++failures > 5) return;
  std::printf("%s: batch %ld seqlen %ld tensors %d:", what, long(p.batch), long(p.seqlen), p.num_tensors);
  for (int t = 0; t < p.num_tensors; ++t) std::printf(" heads %ld of %ld", long(p.x[t].heads), long(p.x[t].head_dim));
  std::printf(", pairs %ld, table_heads %ld\\n", long(p.pairs), long(p.table_heads));
}

RotateParams params(DType dtype, int64_t batch, int64_t seqlen, std::initializer_list<int64_t> heads, int64_t head_dim,
                    int64_t pairs, bool row_per_head, bool in_place) {
  RotateParams p{};
  p.dtype = p.table_dtype = dtype;
  p.batch = batch;
  p.seqlen = seqlen;
  p.pairs = pairs;
  p.pairing = p.out_pairing = half_pairing(pairs);
  p.source = Source::kPerPair;
  p.positions.rows = seqlen;
  for (const int64_t n : heads) {
    RotatedTensor& x = p.x[p.num_tensors++];
    x.heads = n;
    x.head_dim = head_dim;
    x.in = reinterpret_cast<const void*>(int64_t{1} << 40);
    x.out = reinterpret_cast<void*>(int64_t{1} << (in_place ? 40 : 41));
    x.in_stride = x.out_stride = {seqlen * n * head_dim, n * head_dim, head_dim, 1};
    p.table_heads = row_per_head ? n : 1;
  }
  return p;
}

template <class Int>
void check(const RotateParams& p, const Plan& plan) {
  const RotateArguments<Int> a = arguments_of<Int>(p, plan);
  const int64_t tokens = p.batch * p.seqlen, limit = sizeof(Int) == 4 ? int64_t{1} << 31 : int64_t{1} << 62;
  expect(a.tokens == tokens, "tokens", p);
  int64_t threads = 0;
  for (int t = 0; t < p.num_tensors; ++t) {
    const Section<Int>& s = a.sections[t];
    const int64_t of_head = s.units.by, of_token = of_head * s.head_step.by, all = int64_t{s.threads} * plan.rounds;
    expect(s.first_thread == threads && s.threads % plan.threads == 0, "whole blocks", p);
    expect(int64_t{s.threads} * plan.rounds >= tokens * of_token, "a thread for each unit", p);
    expect(int64_t{s.threads} * (plan.rounds - 1) < tokens * of_token, "no round without work", p);
    expect(plan.rounds == 1 || plan.round_tokens * of_token == s.threads, "full blocks", p);
    expect(of_head * plan.width * 2 >= 2 * p.pairs + (p.x[t].in == p.x[t].out ? 0 : p.x[t].head_dim - 2 * p.pairs),
           "units for all channels", p);
    expect(int64_t{s.head_step.by} * plan.heads_per_thread >= p.x[t].heads, "a thread for each head", p);
    expect(all < limit, "threads of a section", p);
    threads += s.threads;
  }
  expect(threads < limit && threads == plan.blocks * plan.threads, "threads of a round", p);
  expect(a.sections[p.num_tensors % kMaxTensors].first_thread == threads || p.num_tensors == kMaxTensors, "the end", p);
}

void check(const RotateParams& p, int multiprocessors) {
  const Plan plan = plan_of(p, multiprocessors);
  expect(plan.rounds >= 1 && plan.rounds <= kMostRounds, "rounds", p);
  expect(plan.rounds * plan.round_tokens >= p.batch * p.seqlen, "all tokens", p);
  expect(plan.threads % 32 == 0 && plan.threads <= kRotateBlock, "threads of a block", p);
  expect(p.table_heads == 1 || plan.heads_per_thread == 1, "a row per head", p);
  rounds_limited += plan.rounds > 32768;
  compact += plan.width > 1;
  plan.width > 1 ? check<int>(p, plan) : check<int64_t>(p, plan);
}

// The call with norms, whose heads have lanes of one warp, and its derivatives.
void check_norm(RotateParams p, int multiprocessors, bool weights) {
  for (int t = 0; t < p.num_tensors; ++t) {
    p.norm[t] = {reinterpret_cast<const void*>(int64_t{1} << 42), p.dtype, 1, false,
                 reinterpret_cast<void*>(int64_t{1} << 43)};
  }
  const Plan plan = plan_of(p, multiprocessors);
  NormGradParams g{};
  static_cast<RotateParams&>(g) = p;
  for (int t = 0; t < p.num_tensors; ++t) {
    void* sums = weights ? reinterpret_cast<void*>(int64_t{1} << 44) : nullptr;
    g.of_norm[t] = {p.x[t].in, p.x[t].in_stride, sums, sums};
  }
  const NormGradPlan grad = norm_grad_plan_of(g, multiprocessors);
  expect(grad.blocks * kBlockTokens >= p.batch * p.seqlen && grad.slices <= kMostRounds, "blocks of tokens", p);
  expect(grad.threads % 32 == 0 && grad.threads <= kNormGradThreads && grad.shared <= 48 << 10, "a block", p);
  const BlockSums sums = block_sums_of(g);
  expect(sums.row_blocks * kSumRows >= sums.blocks && (sums.row_blocks & (sums.row_blocks - 1)) == 0, "rows", p);
  sliced += grad.slices > 1;
  if (weights) expect(grad.slices == 1, "heads are added one after another", p);
  if (plan.width == 1) return;
  ++in_warps;
  check<int>(p, plan);
  const NormArguments a = norm_arguments_of(p, plan);
  const NormGradArguments b = norm_grad_arguments_of(g, grad);
  expect(16 % b.groups == 0 && b.groups * b.lanes == grad.threads, "tokens of a block", p);
  for (int t = 0; t < p.num_tensors; ++t) {
    const NormSection& n = a.norms[t];
    const int64_t of_head = a.sections[t].units.by;
    expect((of_head & (of_head - 1)) == 0 && of_head <= 32 && n.lanes <= of_head, "lanes of a warp", p);
    expect(n.units <= n.lanes && 2 * n.lanes * plan.width >= p.x[t].head_dim, "lanes for a head", p);
    expect(n.steps * int64_t{a.sections[t].head_step.by} >= p.x[t].heads, "steps for all heads", p);
    expect(grad.slices * b.grads[t].slice_heads >= p.x[t].heads, "slices of heads", p);
    expect(n.reciprocal == 0 || n.reciprocal * n.head_dim == 1, "the reciprocal", p);
  }
}

int main() {
  const auto bf16 = DType::kBFloat16;
  // Tensors that each have few enough threads, but not together.
  check(params(bf16, 1, 1, {805306366, 805306366, 805306366}, 4, 2, true, true), 132);
  check(params(bf16, 1, 1, {1073741822, 1073741822, 1073741822, 1073741822}, 16, 8, false, true), 132);
  check(params(bf16, 1, 1 << 20, {64, 16}, 256, 128, false, false), 132);  // a block for each token or two
  std::mt19937_64 random(1);
  const auto below = [&](int64_t end) { return 1 + static_cast<int64_t>(random() % end); };
  for (int i = 0; i < 100000; ++i) {
    const DType dtypes[] = {DType::kFloat64, DType::kFloat32, bf16, DType::kFloat16};
    const int64_t head_dim = below(6) < 6 ? 16 * below(32) : 2 * below(300);
    const int64_t pairs = below(3) == 1 ? below(head_dim / 2) : head_dim / 2;
    const int64_t seqlen = below(int64_t{1} << below(28)), batch = below(int64_t{1} << below(8));
    const int64_t heads = below(int64_t{1} << below(8)), more = below(int64_t{1} << below(8));
    const RotateParams p = params(dtypes[random() % 4], batch, seqlen, {heads, more, heads}, head_dim, pairs,
                                  below(8) == 1, below(2) == 1);
    check(p, static_cast<int>(below(200)));
    check_norm(p, static_cast<int>(below(200)), below(2) == 1);
  }
  expect(compact > 10000 && compact < 99000, "calls of both types", params(bf16, compact, 1, {1}, 2, 1, false, false));
  expect(rounds_limited > 100, "calls with the most rounds", params(bf16, rounds_limited, 1, {1}, 2, 1, false, false));
  expect(in_warps > 5000 && in_warps < 99000, "both kernels", params(bf16, in_warps, 1, {1}, 2, 1, false, false));
  expect(sliced > 1000, "slices", params(bf16, sliced, 1, {1}, 2, 1, false, false));
  std::printf("%d failures", failures);
}
"""


def test_plans_cover_every_unit_within_the_limits_of_a_grid(tmp_path):
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("needs g++")
    source, program = tmp_path / "plans.cpp", tmp_path / "plans"
    source.write_text(PLANS)
    command = [compiler, "-std=c++17", "-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    command += [f"-I{ROOT / 'csrc'}", source, ROOT / "csrc/cuda/plan.cpp", ROOT / "csrc/cuda/norm_plan.cpp"]
    command += ["-o", program]
    subprocess.run(command, check=True)
    found = subprocess.run([program], check=False, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "0 failures"), found.stdout + found.stderr
