#!/usr/bin/env bash
# Everything that needs a GPU, in two calls of six minutes: see --help, and benchmarks/gpu_check/.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
command -v "$python" >/dev/null || { echo "gpu_check.sh: needs Python, got $python, which is not there" >&2 && exit 2; }
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" "$root/benchmarks/gpu_check" "$@"
