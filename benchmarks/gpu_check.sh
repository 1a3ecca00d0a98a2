#!/usr/bin/env bash
# Everything that needs a GPU, in one command: does it build, is it right, how fast is it.
#
# usage: benchmarks/gpu_check.sh [--only PART]... [--wheels DIR] [--seconds N]
#
#   --only PART     build, tests, sanitizer, bench or ncu; may be repeated. Default: all of them, in this order
#   --wheels DIR    peers to compare with: wheels, installed for this run only, and unpacked Python packages
#   --seconds N     at most, all together; default 470. What there is by then is written
#
# build       loads rope_ext/_ops.so and tries its CUDA kernels; compiles it here if that fails
# tests       the whole test suite, in which a skipped CUDA test is a failure
# sanitizer   memcheck and racecheck of compute-sanitizer, on the tests marked `sanitizer`
# bench       bench.py --device cuda --peers: speed, cost of a launch, cost on the host
# ncu         DRAM throughput, occupancy and registers where a copy is faster
#
# Environment: OUT, the folder for PART.log, gpu.md, gpu.json and gpu.png (default benchmarks/results); PYTHON (python3);
# COMMIT, what is measured, where there is no git to ask.
# Nothing is downloaded. Exit status: 0 all passed, 1 a part failed, 2 nothing could be run.

set -uo pipefail # without -e: a part that fails does not stop the others
parts=(build tests sanitizer bench ncu)

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

refuse() {
  echo "gpu_check.sh: $1" >&2
  exit 2
}

only=() wheels='' allowed=470
while (($#)); do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --only | --wheels | --seconds)
      [[ $# -ge 2 ]] || refuse "$1 needs a value, got none"
      case $1 in
        --only)
          [[ " ${parts[*]} " == *" $2 "* ]] || refuse "--only must be one of ${parts[*]}, got $2"
          only+=("$2")
          ;;
        --wheels)
          [[ -d $2 ]] || refuse "--wheels must be a folder, got $2"
          wheels=$(cd "$2" && pwd)
          ;;
        --seconds)
          [[ $2 =~ ^[1-9][0-9]*$ ]] || refuse "--seconds must be a positive integer, got $2"
          allowed=$2
          ;;
      esac
      shift 2
      ;;
    *) refuse "unknown argument $1; see --help" ;;
  esac
done
((${#only[@]})) || only=("${parts[@]}")

python=${PYTHON:-python3}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
OUT=${OUT:-$root/benchmarks/results}
gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")' 2>/dev/null) ||
  refuse "needs a Python with torch, got $python, which cannot import it"
[[ -n $gpu ]] || refuse "needs a GPU that torch can use, got none"

mkdir -p "$OUT" || refuse "OUT must be a folder that can be written, got $OUT"
OUT=$(cd "$OUT" && pwd)
cd "$root" || exit 2
capability=$("$python" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))')
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
touch "$temporary/started"
failed=()

wanted() { [[ " ${only[*]} " == *" $1 "* ]]; }

left() { echo $((allowed - SECONDS)); }

# part NAME LIMIT RESERVE COMMAND...: runs it for LIMIT at most, and leaves RESERVE for what comes after; percent of all.
part() {
  local name=$1 limit=$((allowed * $2 / 100)) available=$(($(left) - allowed * $3 / 100)) began=$SECONDS code
  shift 3
  ((limit < available)) || limit=$available
  if ((limit < 1)); then
    echo "$name: FAILED, no time left" && failed+=("$name")
    return 1
  fi
  # INT: pytest and bench.py then write what they have.
  timeout --signal=INT --kill-after=15 "$limit" "$@" >>"$OUT/${name%% *}.log" 2>&1
  code=$?
  if ((code == 0)); then
    echo "$name: passed in $((SECONDS - began)) s"
    return 0
  fi
  failed+=("$name")
  if ((code == 124 || code == 137)); then
    echo "$name: FAILED, out of time after $((SECONDS - began)) s; the end of ${name%% *}.log:"
  else
    echo "$name: FAILED ($code) after $((SECONDS - began)) s; the end of ${name%% *}.log:"
  fi
  tail -n 12 "$OUT/${name%% *}.log" | cut -c 1-200 | sed 's/^/    /'
  return 1
}

# Whether the library loads and its kernels give the CPU's result; a line that says so. The tests need _introspect too.
probe() {
  timeout 60 "$python" - "$(wanted tests && echo with_introspect)" <<'PYTHON'
import sys

import torch

import rope_ext

if sys.argv[1]:
    from rope_ext import _introspect
x = torch.randn(2, 8, 4, 64)
cos, sin = rope_ext.RotaryEmbedding(64).tables(8, device="cpu")
there = rope_ext.apply(x.cuda(), cos.cuda(), sin.cuda()).cpu()
error = (there - rope_ext.apply(x, cos, sin)).abs().max().item()
assert error < 1e-5, f"CUDA kernels are off the CPU's by {error}"
print(f"{rope_ext.build_info()}, CUDA kernels run, off the CPU's results by {error:.1e}")
PYTHON
}

build() {
  local said
  if said=$(probe 2>&1); then
    echo "build: rope_ext/_ops.so loads: ${said##*$'\n'}" | tee -a "$OUT/build.log"
    return 0
  fi
  echo "build: as it is, not to be used: ${said##*$'\n'}" | tee -a "$OUT/build.log"
  # Not pip: this leaves the Python that runs it as it was. For this GPU only, which takes a fraction of the time.
  ROPE_EXT_CUDA=1 TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability} CMAKE_ARGS="-DROPE_EXT_TEST_HOOKS=ON ${CMAKE_ARGS:-}" \
    part build 40 20 "$python" setup.py build_ext --inplace || return 1
  if ! said=$(probe 2>&1); then
    echo "build: FAILED, built but not to be used: ${said##*$'\n'}" && failed+=(build)
    return 1
  fi
  echo "build: ${said##*$'\n'}" | tee -a "$OUT/build.log"
}

tests() {
  local options=(-q --tb=short --durations=10 -p no:cacheprovider)
  "$python" -c 'import xdist' 2>/dev/null && options+=(-n 6) # several processes, where pytest can do that
  ROPE_EXT_REQUIRE_CUDA=1 part tests 36 42 "$python" -m pytest "${options[@]}"
  grep -E '^(=+ )?[0-9]+ (passed|failed)' "$OUT/tests.log" | tail -n 1
}

sanitizer() {
  local tool
  for tool in memcheck racecheck; do
    # Without torch's cache each tensor is an allocation of its own, and a step past its end is seen.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 ROPE_EXT_REQUIRE_CUDA=1 part "sanitizer $tool" 15 32 \
      compute-sanitizer --tool "$tool" --error-exitcode 9 --report-api-errors no \
      "$python" -m pytest -q -x -p no:cacheprovider -m sanitizer
  done
  grep 'ERROR SUMMARY' "$OUT/sanitizer.log"
}

bench() {
  local budget=$(($(left) - allowed * 13 / 100))
  # It ends by itself, unless something hangs.
  part bench 100 5 "$python" -m benchmarks.bench --device cuda --peers --budget "$budget" --output "$OUT"
}

ncu_counters() {
  [[ $OUT/gpu.json -nt $temporary/started ]] || wanted bench || echo "ncu: of the gpu.json that is there"
  part ncu 13 1 "$python" -m benchmarks.harness.counters "$OUT/gpu"
}

echo "gpu_check.sh: $gpu, $("$python" -c 'import torch; print("torch", torch.__version__)'), at most $allowed s"
for name in "${only[@]}"; do rm -f "$OUT/$name.log"; done
if [[ -n $wheels ]]; then
  if compgen -G "$wheels/*.whl" >/dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --target "$temporary/peers" "$wheels"/*.whl ||
      echo "wheels: FAILED to install"
  fi
  export PYTHONPATH=$PYTHONPATH:$temporary/peers:$wheels
fi
if build; then
  if wanted tests; then tests; fi
  if wanted sanitizer; then sanitizer; fi
  if wanted bench; then bench; fi
  if wanted ncu; then ncu_counters; fi
fi
if [[ $OUT/gpu.json -nt $temporary/started ]]; then
  "$python" -m benchmarks.report "$OUT/gpu"
fi
echo "gpu_check.sh: $SECONDS s; ${failed[*]+FAILED: }${failed[*]-all passed}; files in $OUT"
((${#failed[@]} == 0))
