"""A user's file: every public name of rope_ext, which `mypy --strict` knows the types of. tests/test_types.py runs it."""

from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import assert_type

import rope_ext
from rope_ext import ArgumentError, ArgumentTypeError, RotaryEmbedding, angles, compat, frequencies, reference


def rotate(rope: RotaryEmbedding, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = rope.tables(max_position=16)
    assert_type(rope.tables(16, dtype=torch.bfloat16, device="cpu"), tuple[Tensor, Tensor])
    assert_type(rope(positions), tuple[Tensor, Tensor])

    assert_type(rope_ext.apply(q, cos, sin), Tensor)
    assert_type(rope_ext.apply([q, k], cos, sin, layout="bshd", interleaved=True), list[Tensor])
    assert_type(rope_ext.apply(q, cos, sin, out=torch.empty_like(q)), Tensor)
    assert_type(rope_ext.apply(q, cos, sin, positions=positions, rounding="eager", out_interleaved=True), Tensor)
    assert_type(rope_ext.apply(q, inv_freq=rope.inv_freq, attention_scaling=1.5, offset=3), Tensor)
    packed = q.flatten(0, 1)
    boundaries = torch.tensor([0, 4, 8], dtype=torch.int32)
    assert_type(rope_ext.apply(packed, cos, sin, layout="thd", cu_seqlens=boundaries), Tensor)
    weight = torch.ones(8)
    assert_type(rope_ext.apply(q, cos, sin, norm=weight, eps=1e-6), Tensor)
    assert_type(rope_ext.apply_([q.clone(), k.clone()], cos, sin, norm=(weight, None), eps=1e-6), list[Tensor])
    assert_type(rope.apply((q, k), norm=[weight, weight], eps=1e-6), tuple[Tensor, Tensor])
    assert_type(reference.apply(q, cos, sin, norm=weight, eps=1e-6), Tensor)

    assert_type(rope_ext.apply_(q.clone(), cos, sin, rotary_dim=8, rotary_offset=0, inverse=True), Tensor)
    assert_type(rope_ext.apply_([q.clone(), k.clone()], cos, sin, per_channel=False), list[Tensor])

    qkv = torch.cat((q, k, k), dim=2)
    views = tuple[Tensor, Tensor, Tensor]
    assert_type(rope_ext.apply_qkv(qkv.flatten(2), cos, sin, num_heads=2, num_kv_heads=1, layout="bshd"), views)
    assert_type(rope_ext.apply_qkv(qkv, inv_freq=rope.inv_freq, num_heads=2, num_kv_heads=1, grouped=True), views)
    assert_type(rope_ext.apply_qkv_(qkv, cos, sin, num_heads=2, num_kv_heads=1, positions=positions), views)

    assert_type(rope.apply(q), Tensor)
    assert_type(rope.apply([q, k], offset=torch.tensor([1, 2])), list[Tensor])
    q, k = rope.apply((q, k), positions=positions)
    return rope_ext.apply((q, k), cos, sin)


def make_frequencies(positions: Tensor) -> list[RotaryEmbedding]:
    inv_freq, scaling = frequencies.yarn(8, 10000.0, factor=4.0, original_max_position=16)
    assert_type(inv_freq, Tensor)
    assert_type(scaling, float)
    revolutions = angles.revolutions(inv_freq)
    assert_type(rope_ext.cos_sin(positions, revolutions, scaling), tuple[Tensor, Tensor])
    return [
        RotaryEmbedding(8, base=500_000.0),
        RotaryEmbedding(8, schedule="yarn", factor=4.0, original_max_position=16),
        RotaryEmbedding.from_config({"model_type": "llama", "head_dim": 8, "rope_theta": 10000.0}),
    ]


def rotate_tokens_of_a_rank(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    order: rope_ext.distributed.Order = "head_tail"
    positions = rope_ext.distributed.context_parallel_positions(8, rank=0, world_size=2, order=order)
    permutation, inverse = rope_ext.distributed.context_parallel_order(8, world_size=2, order=order, device="cpu")
    assert_type(permutation, Tensor)
    assert_type(rope_ext.apply(x[:, permutation].chunk(2, 1)[0], cos, sin, positions=positions), Tensor)
    return inverse


def read_error(q: Tensor) -> tuple[str, str, str]:
    try:
        rope_ext.apply(q, q[..., :3], q[..., :3])
    except (ArgumentError, ArgumentTypeError) as error:
        return error.argument, error.rule, error.got
    except rope_ext.errors.ArgumentError:
        raise
    raise AssertionError("tables of width 3 do not fit head_dim 8")


def set_up_memory() -> None:
    rope_ext.set_output_pool(1 << 20)
    rope_ext.set_output_pool(0)
    rope_ext.set_table_limit(256 << 20)
    rope_ext.clear_tables()
    assert_type(rope_ext.tune_malloc(), bool)
    rope_ext.memory.clear_tables()


class Attention(torch.nn.Module):
    def forward(self, q: Tensor) -> Tensor:
        return q


def patch_models() -> str:
    model = Attention()
    with rope_ext.patched(model, rounding="once"):
        model(torch.zeros(1))
    report: rope_ext.Report = rope_ext.patch(model, rounding="eager")
    rope_ext.unpatch(model)
    return str(report)


def compare(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    assert_type(reference.apply(q, cos, sin), Tensor)
    q, k = compat.transformers.apply_rotary_pos_emb(q, k, cos.repeat(1, 1, 2), sin.repeat(1, 1, 2), unsqueeze_dim=2)
    return rope_ext.permute_weights(torch.zeros(16, 4), 2, to="half")


def main() -> None:
    rope = RotaryEmbedding(head_dim=8)
    q, k, positions = torch.randn(2, 4, 2, 8), torch.randn(2, 4, 1, 8), torch.arange(4)
    rotate(rope, q, k, positions)
    make_frequencies(positions)
    assert read_error(q)[0] == "cos"
    set_up_memory()
    patch_models()
    rotate_tokens_of_a_rank(torch.cat((q, q), 1), *rope.tables(8))
    compare(q, k, *(table[None] for table in rope(positions)))
    print(rope_ext.build_info()["version"], Path(rope_ext.__file__).parent.name)


if __name__ == "__main__":
    main()


def deploy(model: torch.nn.Module, x: Tensor) -> None:
    table = torch.export.default_decompositions() | rope_ext.export.decompositions()
    program = torch.export.export(model, (x,)).run_decompositions(table)
    program.run_decompositions(rope_ext.export.decompositions())
    torch.onnx.export(model, (x,), custom_translation_table=rope_ext.onnx.translation_table())
