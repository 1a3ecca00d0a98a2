"""Measurements of speed, run from the root of the checkout.

`python -m benchmarks.bench` times rotations, on a GPU through benchmarks/gpu_check.sh. `python -m benchmarks.calls`
times small calls, and `python -m benchmarks.instructions` counts their instructions, which has no noise.

Packages: harness has the cases, clocks and checks of exactness; baselines the implementations that are measured; report
the summary, Markdown and pictures; gpu_check the parts of gpu_check.sh and their preparation.
"""
