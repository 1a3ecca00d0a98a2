"""Package an attention layer with AOTInductor for a program without Python; run.cpp runs the package.

    python examples/aoti/package.py FOLDER

Writes attention.pt2, the package, inputs.pt, a list of tensors, and expected.pt, the result of the layer for them, to
FOLDER. Needs a C++ compiler, as torch.compile does.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import rope_ext

HEADS, KV_HEADS, HEAD_DIM = 8, 2, 64


class Attention(nn.Module):
    """Causal grouped-query attention with a norm of each query and key head, as in Qwen3."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(HEADS * HEAD_DIM, (HEADS + 2 * KV_HEADS) * HEAD_DIM, bias=False)
        self.out = nn.Linear(HEADS * HEAD_DIM, HEADS * HEAD_DIM, bias=False)
        self.q_norm, self.k_norm = (nn.Parameter(torch.rand(HEAD_DIM) + 0.5) for _ in range(2))
        self.rope = rope_ext.RotaryEmbedding(HEAD_DIM, base=1_000_000.0)

    def forward(self, x, positions):
        sizes = [HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM]
        q, k, v = (t.unflatten(-1, (-1, HEAD_DIM)) for t in self.qkv(x).split(sizes, dim=-1))
        q, k = self.rope.apply((q, k), positions=positions, norm=(self.q_norm, self.k_norm), eps=1e-6)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        y = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder for the three files")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    attention = Attention().to(torch.bfloat16).eval()
    batch, seqlen = torch.export.Dim("batch"), torch.export.Dim("seqlen")
    shapes = {"x": {0: batch, 1: seqlen}, "positions": {0: batch, 1: seqlen}}

    def inputs(batch, seqlen, first):
        positions = torch.arange(first, first + seqlen).expand(batch, seqlen).contiguous()
        return torch.randn(batch, seqlen, HEADS * HEAD_DIM, dtype=torch.bfloat16), positions

    with torch.no_grad():
        program = torch.export.export(attention, inputs(2, 16, 0), dynamic_shapes=shapes)
        torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "attention.pt2"))
        given = inputs(3, 40, 1000)
        torch.save(list(given), folder / "inputs.pt")
        torch.save(attention(*given), folder / "expected.pt")


if __name__ == "__main__":
    main()
