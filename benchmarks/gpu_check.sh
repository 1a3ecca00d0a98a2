#!/usr/bin/env bash
# Run everything that needs a GPU, in two calls of six minutes: see --help and benchmarks/gpu_check/.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
command -v "$python" >/dev/null || { echo "gpu_check.sh: needs Python, got $python, which is not installed" >&2 && exit 2; }
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" "$root/benchmarks/gpu_check" "$@"
