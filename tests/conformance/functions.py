"""Compares the functions of rope_ext.compat with the originals: prints the table in docs/migrate.md.

Originals that are not installed are skipped::

    python -m tests.conformance.functions

Angles have base 10000 and positions 0 to 255; x is standard normal. "difference" is the largest difference, in units of
eps of the dtype times the largest element. "error" is the largest error against float64, of the original and of
rope_ext, in the same units.
"""

import importlib
import os
from types import SimpleNamespace

import torch

from rope_ext import compat

BATCH, SEQLEN, HEADS, HEAD_DIM = 2, 256, 4, 64
ANGLES = torch.arange(SEQLEN, dtype=torch.float64)[:, None] * 10000 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
HALVES, PAIRED = torch.cat((ANGLES, ANGLES), dim=-1), ANGLES.repeat_interleave(2, dim=-1)
SCALE = torch.linspace(0.5, 1.5, SEQLEN * HEAD_DIM).view(SEQLEN, HEAD_DIM)


def bhsd(x):
    return x.transpose(1, 2)


def cos_sin(angles, dtype):
    return angles.cos().to(dtype), angles.sin().to(dtype)


def cis(dtype):
    return torch.complex(*cos_sin(ANGLES, torch.float64 if dtype == torch.float64 else torch.float32))


def module(*tables, stack=False):
    return SimpleNamespace(cache=torch.stack(tables, dim=-1) if stack else torch.cat(tables, dim=-1))


def vllm(f, x, table):
    x = x.flatten(0, 1).flatten(1).clone()
    f(torch.arange(SEQLEN).repeat(BATCH), x, None, HEAD_DIM, torch.cat(cos_sin(ANGLES, x.dtype), dim=-1), True)
    return x


# (function of compat, module of the original, its name in the module, dtypes of the tables: "x" for that of x,
# call(f, x, dtype of the tables))
CASES = [
    (
        "transformers.apply_rotary_pos_emb",
        "transformers.models.llama.modeling_llama",
        "apply_rotary_pos_emb",
        ("x", "float32"),
        lambda f, x, t: f(bhsd(x), bhsd(x), *(c[None] for c in cos_sin(HALVES, t)))[0],
    ),
    (
        "flash_attn.apply_rotary_emb",
        "flash_attn.layers.rotary",
        "apply_rotary_emb",
        ("x", "float32"),
        lambda f, x, t: f(x, *cos_sin(ANGLES, t)),
    ),
    (
        "transformer_engine.apply_rotary_pos_emb",
        "transformer_engine.pytorch.attention.rope",
        "apply_rotary_pos_emb",
        ("x",),
        lambda f, x, t: f(x, HALVES.to(torch.promote_types(t, torch.float32))[:, None, None], "bshd"),
    ),
    (
        "liger.liger_rotary_pos_emb",
        "liger_kernel.transformers.rope",
        "liger_rotary_pos_emb",
        ("x", "float32"),
        lambda f, x, t: f(bhsd(x * 1), bhsd(x * 1), *(c[None] for c in cos_sin(HALVES, t)))[0],
    ),
    ("vllm.rotary_embedding", "vllm._custom_ops", "rotary_embedding", ("x",), vllm),
    (
        "torchtune.forward",
        "torchtune.modules.position_embeddings",
        "RotaryPositionalEmbeddings.forward",
        ("float32",),
        lambda f, x, t: f(module(*cos_sin(ANGLES, t), stack=True), x),
    ),
    (
        "torchtune.forward_half",
        "torchtune.models.phi3._position_embeddings",
        "Phi3RotaryPositionalEmbeddings.forward",
        ("float32",),
        lambda f, x, t: f(module(*cos_sin(HALVES, t)), x),
    ),
    (
        "torchtune.forward_half",
        "torchtune.models.qwen2._positional_embeddings",
        "Qwen2RotaryPositionalEmbeddings.forward",
        ("float32",),
        lambda f, x, t: f(module(*cos_sin(HALVES, t)), x),
    ),
    (
        "torchtitan.apply_rotary_emb_cos_sin",
        "torchtitan.models.common.rope",
        "CosSinRoPE.apply_rotary_emb",
        ("float32",),
        lambda f, x, t: f(x, x, torch.cat(cos_sin(HALVES, t), dim=-1)[None, :, None])[0],
    ),
    (
        "torchtitan.apply_rotary_emb_complex",
        "torchtitan.models.common.rope",
        "ComplexRoPE.apply_rotary_emb",
        ("float32",),
        lambda f, x, t: f(x, x, cis(t)[None, :, None])[0],
    ),
    (
        "rotary_embedding_torch.apply_rotary_emb",
        "rotary_embedding_torch.rotary_embedding_torch",
        "apply_rotary_emb",
        ("float32", "x"),
        lambda f, x, t: f(PAIRED.to(t), bhsd(x)),
    ),
    (
        "rotary_embedding_torch.apply_rotary_emb, scale",
        "rotary_embedding_torch.rotary_embedding_torch",
        "apply_rotary_emb",
        ("float32",),
        lambda f, x, t: f(PAIRED.to(t), bhsd(x), scale=SCALE.to(t)),
    ),
    (
        "x_transformers.apply_rotary_pos_emb",
        "x_transformers.x_transformers",
        "apply_rotary_pos_emb",
        ("float32",),
        lambda f, x, t: f(bhsd(x), PAIRED.to(t)[None]),
    ),
    (
        "timm.apply_rot_embed_cat",
        "timm.layers.pos_embed_sincos",
        "apply_rot_embed_cat",
        ("float32", "x"),
        lambda f, x, t: f(bhsd(x), torch.cat(cos_sin(PAIRED, t)[::-1], dim=-1)),
    ),
]


def attribute(found, path):
    for name in path.split(",")[0].split("."):
        found = getattr(found, name)
    return found


def main():
    torch.manual_seed(0)
    double = torch.randn(BATCH, SEQLEN, HEADS, HEAD_DIM, dtype=torch.float64)
    print("| function | x | tables | equal | difference | error: original | ours |\n|---|---|---|---|---|---|---|")
    for name, module_name, path, tables, call in CASES:
        try:
            theirs = attribute(importlib.import_module(module_name), path)
        except ImportError:
            continue
        in_triton = module_name.split(".")[0] in ("flash_attn", "liger_kernel")
        # Triton's interpreter truncates to bfloat16; a GPU rounds.
        interpreted = in_triton and os.environ.get("TRITON_INTERPRET") == "1"
        for x_dtype in (torch.float32,) if interpreted else (torch.float32, torch.bfloat16):
            for table in tables if x_dtype == torch.bfloat16 else tables[:1]:
                x, table_dtype = double.to(x_dtype), x_dtype if table == "x" else getattr(torch, table)
                ours = attribute(compat, name)
                got, expected = call(ours, x, table_dtype), call(theirs, x, table_dtype)
                exact = call(ours, x.double(), torch.float64)
                unit = torch.finfo(got.dtype).eps * exact.abs().max()
                pairs = (got, expected), (expected, exact), (got, exact)
                off = [f"{(a.double() - b.double()).abs().max() / unit:.2f}" for a, b in pairs]
                equal = 100 * (got == expected).double().mean()
                model = path.split("Rotary")[0]
                cells = f"{name} ({model})" if "forward" in name and model else name, *map(str, (x_dtype, table_dtype))
                cells = *(cell.removeprefix("torch.") for cell in cells), f"{equal:.4g} %", *off
                print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
