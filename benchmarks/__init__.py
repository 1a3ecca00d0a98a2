"""Speed: python -m benchmarks.bench, from the root of the checkout; on a GPU benchmarks/gpu_check.sh.

Small calls: python -m benchmarks.calls, in time; python -m benchmarks.instructions, without noise.

harness: cases, clocks, exactness. baselines: what is measured. report: figures, Markdown, picture. gpu_check: the parts
of gpu_check.sh, and what is prepared for them.
"""
