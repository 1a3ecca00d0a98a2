"""Every form of a call as a function of (q, k, positions), for the tests of rope_ext.export and rope_ext.onnx.

`python -m tests.deployed_forms` prints the table at the end of docs/deploy.md: how far the results of exported programs
are from those of `apply`.
"""

import functools
import warnings

import torch

import rope_ext
from rope_ext.frequencies import mrope_pair_axis

HEAD_DIM, ROWS = 16, 64
EPS = 1e-6
HALF_PRECISION = {"bfloat16": torch.bfloat16, "float16": torch.float16}
ROPE = rope_ext.RotaryEmbedding(HEAD_DIM)
PART = rope_ext.RotaryEmbedding(HEAD_DIM, rotary_dim=8)
YARN = rope_ext.RotaryEmbedding(HEAD_DIM, schedule="yarn", factor=4.0, original_max_position=32)
MROPE = rope_ext.RotaryEmbedding(HEAD_DIM, pair_axis=mrope_pair_axis([2, 3, 3]))
HF = rope_ext.RotaryEmbedding(HEAD_DIM, precision="hf")
COS, SIN = ROPE.tables(ROWS)
PARTIAL = PART.tables(ROWS)
GENERATOR = torch.Generator().manual_seed(0)
CHANNELS = [torch.rand(ROWS, HEAD_DIM, generator=GENERATOR) for _ in range(2)]
WEIGHT = 1 + torch.rand(HEAD_DIM, generator=GENERATOR)
PER_HEAD = torch.rand(4, HEAD_DIM // 2, generator=GENERATOR)
CU_SEQLENS = torch.tensor([0, 2, 5], dtype=torch.int32)


def inputs(batch=2, seqlen=7):
    """q (batch, seqlen, 4 heads, 16), k with 2 heads, positions (batch, seqlen)."""
    generator = torch.Generator().manual_seed(seqlen)
    q, k = (torch.randn(batch, seqlen, heads, HEAD_DIM, generator=generator) for heads in (4, 2))
    return q, k, torch.randint(ROWS, (batch, seqlen), generator=generator)


def in_layout(layout):
    def call(q, k, positions):
        q, k, lookup = (q, k, positions) if "b" in layout else (q[0], k[0], positions[0])
        if "b" in layout:
            q, k = (t.permute(["bshd".index(axis) for axis in layout]) for t in (q, k))
        return rope_ext.apply((q, k), COS, SIN, layout=layout, positions=lookup)

    return call


def with_dtype(dtype, call, **options):
    def converted(q, k, positions):
        return call(q.to(dtype), positions, **options).to(torch.float32)

    return converted


def simple(**options):
    return lambda q, k, positions: rope_ext.apply(q, COS, SIN, **options)


def frequencies(**options):
    return lambda q, k, positions: rope_ext.apply(q, inv_freq=ROPE.inv_freq, positions=positions, **options)


def out(q, k, positions):
    result = torch.empty_like(q)
    return rope_ext.apply(q, COS, SIN, out=result)


def packed(call, **options):
    def of_qkv(q, k, positions):
        qkv = torch.cat((q, k, k + 1), dim=2).flatten(2)
        return call(qkv, COS, SIN, num_heads=4, num_kv_heads=2, **options)

    return of_qkv


def float64(call):
    return lambda q, k, positions: call(q.double(), k.double(), positions)


FORMS = {
    "tables": simple(),
    "interleaved": simple(interleaved=True),
    "inverse": simple(inverse=True),
    "offset": simple(offset=5),
    "q and k": lambda q, k, positions: rope_ext.apply((q, k), COS, SIN),
    "rotary_dim": lambda q, k, positions: rope_ext.apply(q, *PARTIAL, rotary_dim=8),
    "rotary_dim, interleaved": lambda q, k, positions: rope_ext.apply(
        q, *PARTIAL, rotary_dim=8, interleaved=True, positions=positions
    ),
    "rotary_offset": lambda q, k, positions: rope_ext.apply(q, *PARTIAL, rotary_dim=8, rotary_offset=4),
    "out_interleaved": lambda q, k, positions: rope_ext.apply(
        q, *PARTIAL, rotary_dim=8, rotary_offset=8, interleaved=True, out_interleaved=False
    ),
    "positions": lambda q, k, positions: rope_ext.apply((q, k), COS, SIN, positions=positions),
    "positions (seqlen,)": lambda q, k, positions: rope_ext.apply(q, COS, SIN, positions=positions[0].int()),
    "offset per sequence": lambda q, k, positions: rope_ext.apply(q, COS, SIN, offset=positions[:, 0] // 2),
    "bhsd": in_layout("bhsd"),
    "sbhd": in_layout("sbhd"),
    "shd": in_layout("shd"),
    "thd": in_layout("thd"),
    "cu_seqlens": lambda q, k, positions: rope_ext.apply(
        (q[0], k[0]), COS, SIN, layout="thd", cu_seqlens=CU_SEQLENS, offset=1
    ),
    "cu_seqlens, norm": lambda q, k, positions: rope_ext.apply(
        q[0], COS, SIN, layout="thd", cu_seqlens=CU_SEQLENS, norm=WEIGHT, eps=EPS
    ),
    "cu_seqlens, inv_freq": lambda q, k, positions: rope_ext.apply(
        q[0], inv_freq=ROPE.inv_freq, layout="thd", cu_seqlens=CU_SEQLENS
    ),
    "table per channel": lambda q, k, positions: rope_ext.apply(q, *CHANNELS),
    "table per channel, interleaved": lambda q, k, positions: rope_ext.apply(
        q, *CHANNELS, interleaved=True, out_interleaved=False, inverse=True
    ),
    "table per token": lambda q, k, positions: rope_ext.apply((q, k), *ROPE(positions)),
    "table per token, shared by the batch": lambda q, k, positions: rope_ext.apply(q, *ROPE(positions[:1])),
    "table per token, equal halves, interleaved": lambda q, k, positions: rope_ext.apply(
        q, *(torch.cat((t, t), -1) for t in ROPE(positions)), interleaved=True
    ),
    "table per head": lambda q, k, positions: rope_ext.apply(q, q[..., 8:].cos(), q[..., 8:].sin()),
    "table per head, bhsd": lambda q, k, positions: rope_ext.apply(
        q.transpose(1, 2), q[:, :, :1, 8:].cos().transpose(1, 2), q[:, :, :1, 8:].sin().transpose(1, 2), layout="bhsd"
    ),
    "inv_freq": frequencies(),
    "inv_freq, far": lambda q, k, positions: rope_ext.apply(q, inv_freq=ROPE.inv_freq, positions=positions * 1_000_003),
    "inv_freq, float positions": lambda q, k, positions: rope_ext.apply(
        q, inv_freq=ROPE.inv_freq, positions=positions / 3, offset=2, inverse=True
    ),
    "inv_freq per head": lambda q, k, positions: rope_ext.apply(q, inv_freq=PER_HEAD, offset=positions[:, 0]),
    "inv_freq, several axes": lambda q, k, positions: MROPE.apply(
        (q, k), positions=torch.stack((positions, positions + 3, positions * 2))
    ),
    "attention_scaling": lambda q, k, positions: YARN.apply(q, positions=positions),
    "rope.apply": lambda q, k, positions: ROPE.apply((q, k), interleaved=True),
    "rope.apply, hf": lambda q, k, positions: HF.apply(q, positions=positions),
    "norm": simple(norm=WEIGHT, eps=EPS),
    "norm, q only": lambda q, k, positions: rope_ext.apply(
        (q, k), COS, SIN, norm=(WEIGHT, None), eps=EPS, interleaved=True
    ),
    "norm, inv_freq": frequencies(norm=WEIGHT, eps=EPS),
    "apply_": lambda q, k, positions: rope_ext.apply_((q * 1, k * 1), COS, SIN),
    "out=": out,
    "apply_qkv": packed(rope_ext.apply_qkv),
    "apply_qkv, norm": packed(rope_ext.apply_qkv, norm=(WEIGHT, None), eps=EPS),
    "apply_qkv_": packed(rope_ext.apply_qkv_),
    "float64": float64(lambda q, k, positions: rope_ext.apply(q, COS.double(), SIN.double(), inverse=True)),
    "float64, inv_freq": float64(frequencies()),
    "float64, norm": float64(
        lambda q, k, positions: rope_ext.apply(q, COS.double(), SIN.double(), norm=WEIGHT, eps=EPS)
    ),
    "compat.transformers": lambda q, k, positions: rope_ext.compat.transformers.apply_rotary_pos_emb(
        q, k, *(torch.cat((t, t), -1) for t in ROPE(positions)), unsqueeze_dim=2
    ),
}
for _name, _dtype in HALF_PRECISION.items():
    _tables, _weight = (COS.to(_dtype), SIN.to(_dtype)), WEIGHT.to(_dtype)
    FORMS |= {
        _name: with_dtype(_dtype, lambda x, positions: rope_ext.apply(x, COS, SIN, positions=positions)),
        f"{_name} tables": with_dtype(_dtype, lambda x, positions, t=_tables: rope_ext.apply(x, *t)),
        f"{_name}, eager": with_dtype(_dtype, lambda x, positions, t=_tables: rope_ext.apply(x, *t, rounding="eager")),
        f"{_name}, norm": with_dtype(_dtype, lambda x, positions: rope_ext.apply(x, COS, SIN, norm=WEIGHT, eps=EPS)),
        f"{_name}, norm, eager": with_dtype(
            _dtype,
            lambda x, positions, t=_tables, w=_weight: rope_ext.apply(x, *t, norm=w, eps=EPS, rounding="eager"),
        ),
    }


# Calls that `apply` refuses, but whose decomposed operations would broadcast.
REFUSED = {
    "cos must have width 8 .* got width 1": lambda q, k, positions: rope_ext.apply(q, COS[:, :1], SIN[:, :1]),
    "positions must have shape": lambda q, k, positions: rope_ext.apply(q, COS, SIN, positions=positions[:, :1]),
    "x must hold tensors with the batch": lambda q, k, positions: rope_ext.apply((q, k[:1]), COS, SIN),
    "cos must be float32 or the dtype": lambda q, k, positions: rope_ext.apply(q, COS.double(), SIN.double()),
    "inv_freq must have width 8": lambda q, k, positions: rope_ext.apply(q, inv_freq=ROPE.inv_freq[:1] * q[0, 0, 0, 0]),
    "norm must have shape": lambda q, k, positions: rope_ext.apply(q, COS, SIN, norm=WEIGHT[:1], eps=EPS),
}


class AllForms(torch.nn.Module):
    """All forms in one graph, since each graph takes seconds to export. The scale makes x require grad."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(HEAD_DIM))

    def forward(self, q, k, positions):
        called = [call(q * self.scale, k * self.scale, positions) for call in FORMS.values()]
        return [[t] if isinstance(t, torch.Tensor) else [*t] for t in called]


def decomposed(program):
    return program.run_decompositions(torch.export.default_decompositions() | rope_ext.export.decompositions())


def to_onnx(model, x, **options):
    options = {"custom_translation_table": rope_ext.onnx.translation_table(), **options}
    with torch.no_grad():
        return torch.onnx.export(model, x, dynamo=True, verbose=False, **options)


def run_onnx(program, x):
    """The outputs of the graph, as one list."""
    import onnxruntime

    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {i.name: t.numpy() for i, t in zip(session.get_inputs(), x)}
    return [torch.from_numpy(y) for y in session.run(None, given)]


@functools.cache
def _numbers_of_results():
    with torch.no_grad():
        return [len(outputs) for outputs in AllForms()(*inputs())]


def by_form(values):
    """{form: its results}. values: the results of all forms, concatenated."""
    values = iter(values)
    return {form: [next(values) for _ in range(count)] for form, count in zip(FORMS, _numbers_of_results())}


@torch.no_grad()
def main():
    model, x = AllForms().eval(), inputs()
    called = by_form(t for outputs in model(*x) for t in outputs)
    columns = {
        "decompositions": [t for outputs in decomposed(torch.export.export(model, x)).module()(*x) for t in outputs]
    }
    for opset in (23, 20):
        columns[f"ONNX, opset {opset}"] = run_onnx(to_onnx(model, x, opset_version=opset), x)
    found = [by_form(values) for values in columns.values()]
    forms_by_errors = {}  # forms with the same errors share a row
    for form, wanted in called.items():
        errors = [max((a - b).abs().max().item() for a, b in zip(values[form], wanted)) for values in found]
        forms_by_errors.setdefault(tuple(f"{error:.1e}" if error else "0" for error in errors), []).append(form)
    print("|", " | ".join(columns), "| forms |")
    print("|" + "---:|" * len(columns) + "---|")
    for errors, forms in forms_by_errors.items():
        print(f"| {' | '.join(errors)} | {'; '.join(forms)} |")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
