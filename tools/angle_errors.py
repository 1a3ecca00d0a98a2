"""Errors of cos and sin at large positions: `python -m tools.angle_errors` prints the table of docs/exactness.md.

The true values are those of `rope_ext.cos_sin` in float64. The tests compare them with arithmetic of 60 digits: they
are off by less than 1e-15.
"""

import torch
from tqdm import tqdm

import rope_ext
from benchmarks.report.markdown import grid

HEAD_DIM, BASE, POSITIONS = 128, 10000.0, 20_000  # positions before each of ENDS
ENDS = [2048, 32768, 131072, 1 << 20, 1 << 24]


def iterated(positions, inv_freq):
    """The angles of ggml: the first is the position, each other one is its predecessor times a constant, in float32."""
    ratio = torch.tensor(BASE ** (-2 / HEAD_DIM), dtype=torch.float32)
    angles = [positions.float()]
    for _ in range(len(inv_freq) - 1):
        angles.append(angles[-1] * ratio)
    angles = torch.stack(angles, dim=-1)
    return angles.cos(), angles.sin()


def main():
    exact = rope_ext.RotaryEmbedding(HEAD_DIM, base=BASE)
    hf = rope_ext.RotaryEmbedding(HEAD_DIM, base=BASE, precision="hf")
    ways = {
        'tables, `precision="exact"`': exact,
        "in the kernel (float32 arithmetic)": lambda p: rope_ext.cos_sin(p, exact.inv_freq),
        'float32 product, `precision="hf"`, most model code': hf,
        "ggml: iterated products": lambda p: iterated(p, exact.inv_freq),
    }
    errors = {name: [] for name in ways}
    for end in tqdm(ENDS):
        positions = torch.arange(max(0, end - POSITIONS), end)
        truth = rope_ext.cos_sin(positions, exact.inv_freq, dtype=torch.float64)
        for name, way in ways.items():
            off = max((got.double() - wanted).abs().max().item() for got, wanted in zip(way(positions), truth))
            errors[name].append(f"{off:.1e}")
    print(grid(["positions below", *(f"{end:,}" for end in ENDS)], 1, [[name, *row] for name, row in errors.items()]))


if __name__ == "__main__":
    main()
