"""The GPU implementations of other libraries, for `bench.py --peers --device cuda`; peers.py has the rules.

Each is called as its users call it, with the tables that it reads, and compared within its form of call.
"""

import importlib.util
import sys
import types
from functools import partial

import torch

from benchmarks.baselines.peers import load, on_rows
from benchmarks.harness.variants import NotOffered, Step, Variant, forward_only, of_tensors, refill

TABLE_LIKE_X = "a table in the dtype of x"
BSHD, SBHD = (0, 2, 1, 3), (2, 0, 1, 3)  # permutations of (batch, heads, seqlen, head_dim)


def each(rotate):
    """(q, k, tables) -> (q, k) from a function that rotates one tensor."""
    return lambda q, k, _tables: (rotate(q), rotate(k))


def flash_attention():
    """Triton kernels, one launch for q and one for k."""
    bare_package("flash_attn")
    from flash_attn.layers.rotary import apply_rotary_emb

    def rotation_of(case, inplace):
        cos, sin = (t.to(case.inputs[0].dtype) for t in (case.tables.cos, case.tables.sin))
        options = {"interleaved": case.interleaved, "inplace": inplace, "seqlen_offsets": case.shape.first_position}
        return partial(apply_rotary_emb, cos=cos, sin=sin, **options)

    def functional(case):
        return of_tensors(each(rotation_of(case, False)), BSHD)(case)

    def in_place(case):
        x, rotate = case.fresh_inputs(), rotation_of(case, True)
        by_token = [t.permute(BSHD) for t in x]
        return Step(lambda: [rotate(t) for t in by_token], before=partial(refill, x, case.inputs), fetch=lambda _: x)

    return [
        Variant("flash-attn", "functional", functional, 2, reads=TABLE_LIKE_X),
        Variant("flash-attn in place", "in place", forward_only(in_place), 2, reads=TABLE_LIKE_X),
    ]


def liger():
    """One Triton kernel for q and k. It overwrites q and k, and in backward their incoming gradients."""
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    def rows(case):
        if case.memory != "bshd":
            raise NotOffered("copies what is not (batch, seqlen, heads, head_dim) in memory")
        return case.tables.channel_cos[0], case.tables.channel_sin[0]

    def in_place(case):
        x = case.fresh_inputs()
        call = partial(liger_rotary_pos_emb, *x, *rows(case))
        return Step(call, before=partial(refill, x, case.inputs))

    def training(case):
        if not case.backward:
            raise NotOffered("forward: in place")
        leaves, grads, tables = [x.requires_grad_() for x in case.fresh_inputs()], case.fresh_grads(), rows(case)

        def forward_backward():
            y = liger_rotary_pos_emb(*leaves, *tables)
            return *y, *torch.autograd.grad(y, leaves, grads)

        def before():
            with torch.no_grad():
                refill((*leaves, *grads), (*case.inputs, *case.grads))

        return Step(forward_backward, before=before, forward=partial(liger_rotary_pos_emb, *leaves, *tables))

    reads = "one entry per channel, in the dtype of x"
    overwriting = f"{reads}; overwrites q, k and the gradients, and so moves as many bytes as a functional call"
    return [
        Variant("Liger in place", "in place", forward_only(in_place), 3, "half", reads=reads),
        Variant("Liger", "functional", training, 3, "half", reads=overwriting),
    ]


def transformer_engine():
    """The kernel computes cos and sin from angles; one launch for q and one for k."""
    try:
        from transformer_engine.pytorch.attention.rope import apply_rotary_pos_emb
    except ImportError:  # before 2.3
        from transformer_engine.pytorch.attention import apply_rotary_pos_emb

    def build(case):
        angles = case.tables.angles
        angles = angles.repeat_interleave(2, -1) if case.interleaved else torch.cat((angles, angles), -1)
        freqs = angles.float()[:, None, None]  # (seqlen, 1, 1, head_dim)
        options = {"tensor_format": "bshd", "fused": True, "interleaved": case.interleaved}
        return of_tensors(each(partial(apply_rotary_pos_emb, freqs=freqs, **options)), BSHD)(case)

    return [Variant("Transformer Engine", "functional", build, 1, float32_angles=True, reads="angles in float32")]


def apex():
    """Results are contiguous as (batch, seqlen, heads, head_dim), like the inputs; one launch for q, one for k."""
    from apex.transformer.functional import fused_apply_rotary_pos_emb_cached

    def build(case):
        cos, sin = (t[0, 0, :, None, None] for t in (case.tables.channel_cos, case.tables.channel_sin))

        def rotate(t):  # by position: releases differ in the names cos and cos_
            return fused_apply_rotary_pos_emb_cached(t, cos, sin, True)

        return of_tensors(each(rotate), SBHD)(case)

    return [Variant("apex", "functional", build, 3, "half", reads="one entry per channel, in the dtype of x")]


def vllm():
    """Only the compiled library of the package is loaded."""
    load("vllm", "_C[._]*so")  # newer releases have a second file, for the stable ABI
    op = torch.ops._C.rotary_embedding.default
    return [Variant("vLLM", "in place", forward_only(partial(on_rows, op)), 3, reads=f"positions, {TABLE_LIKE_X}")]


def flashinfer():
    """The first call compiles the kernels, which takes a minute."""
    from flashinfer.rope import apply_rope_with_cos_sin_cache, apply_rope_with_cos_sin_cache_inplace

    def sixteen_bits(case):
        if case.dtype == "fp32":
            raise NotOffered("no fp32")
        return case

    def in_place(case):
        return on_rows(apply_rope_with_cos_sin_cache_inplace, sixteen_bits(case), torch.float32)

    def functional(case):
        call, s = on_rows(apply_rope_with_cos_sin_cache, sixteen_bits(case), torch.float32).call, case.shape

        def fetch(results):  # (tokens, heads * head_dim)
            return [y.view(s.batch, s.seqlen, -1, s.head_dim).transpose(1, 2) for y in results]

        return Step(call, fetch=fetch)

    return [
        Variant("FlashInfer", "functional", forward_only(functional), 1, reads="positions"),
        Variant("FlashInfer in place", "in place", forward_only(in_place), 1, reads="positions"),
    ]


def bare_package(name):
    """Make the modules of a package importable without its __init__, which loads compiled parts they do not need."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {name!r}")
    package = types.ModuleType(name)
    package.__path__ = spec.submodule_search_locations
    sys.modules.setdefault(name, package)


PEERS = {
    "flash-attn": flash_attention,
    "Liger": liger,
    "Transformer Engine": transformer_engine,
    "apex": apex,
    "vLLM": vllm,
    "FlashInfer": flashinfer,
}
