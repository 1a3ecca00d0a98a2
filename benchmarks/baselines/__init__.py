"""The implementations that bench.py measures.

VARIANTS are always measured, POOLED with --malloc pool, peers_cpu.py and peers_gpu.py with --peers.
"""

from benchmarks.baselines.ours import OURS, POOLED
from benchmarks.baselines.pytorch import COPY, FORMULAS

__all__ = ["POOLED", "VARIANTS"]
VARIANTS = [COPY, *OURS, *FORMULAS]
