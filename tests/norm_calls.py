"""Calls of the ops that normalise heads and differentiate it, for modules that run CUDA's kernels on the CPU."""

import torch

from rope_ext import _introspect
from rope_ext._torch import flags
from rope_ext.reference import LAYOUTS
from tests.conftest import DTYPES, assert_same_bits, in_memory, random, random_integers
from tests.pairwise import pairwise
from tests.test_instruction_sets import dtype_name, params_of

ROWS, EPS = 1200, 1e-3
PARAMETERS = {
    "dtype": DTYPES,
    # (head_dim, rotary_dim, rotary_offset): lanes sum what they rotate, or other channels; elements one by one
    "channels": [(64, None, 0), (128, None, 0), (80, None, 0), (96, 32, 16), (128, 64, 64), (32, 16, 0), (70, 12, 3)],
    "heads": [(1,), (4, 2), (2, 5, 1)],
    "norm": ["all", "first", "last"],
    "weights": ["like x", "wide"],
    "tables": ["pairs", "channels", "tokens", "heads", "inv_freq"],
    "lookup": ["rows", "positions", "cu_seqlens"],
    "order": ["contiguous", "transposed", "sliced", "last stride 2"],
    "interleaved": [False, True],
    "moved": [False, True],  # the result has the other pairing
    "rounding": ["once", "eager"],
    "form": ["new", "out", "in place"],
    "wanted": ["all", "x", "weights", "some"],
}
WANTED = {"all": 0xFFFF, "x": 0x00FF, "weights": 0xFF00, "some": 0x0201}
NAMES = {"ids": lambda case: "-".join(str(value).replace("torch.", "") for value in case.values())}


def cases(**more):
    return pairwise({**PARAMETERS, **more})


def arithmetic(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


class Call:
    """A case. To `differentiate`, x is the gradient of the result, and `input` the tensor that was normalized."""

    def __init__(self, case, tokens=5):
        self.case, (head_dim, rotary_dim, offset) = case, case["channels"]
        dtype, per_head = case["dtype"], case["tables"] == "heads"
        heads, batch = (2, 2) if per_head else case["heads"], 1 if case["lookup"] == "cu_seqlens" else 2
        self.x, self.input, self.out = (
            [in_memory(random((batch, tokens, n, head_dim), dtype, seed + i), order) for i, n in enumerate(heads)]
            for seed, order in ((0, case["order"]), (3, "contiguous"), (6, "transposed"))
        )
        self.inv_rms = [random((batch, tokens, n), arithmetic(dtype), 9).abs() for n in heads]
        only = {"first": 0, "last": len(heads) - 1}.get(case["norm"])
        of_weights = dtype if case["weights"] == "like x" else arithmetic(dtype)
        weights = [random((head_dim,), of_weights, 10 + i) for i in range(len(heads))]
        self.rest = {"norm": [w if only in (None, i) else None for i, w in enumerate(weights)], "eps": EPS}
        self.rest |= {"rotary_dim": rotary_dim, "rotary_offset": offset, "flags": self.flags_of(case)}
        self.tables = self.tables_of(case, batch, tokens, (rotary_dim or head_dim) // 2)
        if case["tables"] in ("tokens", "heads"):
            return
        if case["lookup"] == "positions":
            self.rest["positions"] = random_integers(ROWS, (batch, tokens))
        if case["lookup"] == "cu_seqlens":  # the last tokens are copied
            self.rest["flags"] |= LAYOUTS.index("thd")
            self.rest["cu_seqlens"] = torch.tensor([0, 2, tokens - 2], dtype=torch.int32)
            self.x, self.input, self.out = ([t[0] for t in xs] for xs in (self.x, self.input, self.out))

    @staticmethod
    def flags_of(case):
        chosen = flags.INTERLEAVED * case["interleaved"] | flags.ROUND_PRODUCTS * (case["rounding"] == "eager")
        chosen |= flags.OTHER_PAIRING * (case["moved"] and case["form"] != "in place")
        return chosen | flags.FREQUENCIES * (case["tables"] == "inv_freq")

    @staticmethod
    def tables_of(case, batch, tokens, pairs):
        wide = arithmetic(case["dtype"])
        if case["tables"] == "inv_freq":
            inv_freq = random((pairs,), torch.float64, 14).abs()
            return torch.ops.rope_ext.revolutions(inv_freq, wide == torch.float64)
        width = pairs * (1 + (case["tables"] == "channels"))
        shapes = {"tokens": (batch, tokens, width), "heads": (batch, tokens, 2, width)}
        dtype = case["dtype"] if case["rounding"] == "eager" else wide
        return [random(shapes.get(case["tables"], (ROWS, width)), dtype, seed) for seed in (12, 13)]

    def written(self):
        given = self.x if self.case["form"] == "in place" else self.out
        return [t.clone(memory_format=torch.preserve_format) for t in given]

    def normalise(self):
        """All that is written: the result, and what its derivative needs."""
        if self.case["form"] == "new":
            y, inv_rms = torch.ops.rope_ext.norm_rotate(self.x, *self.tables, **self.rest)
            return [*y, *inv_rms]
        out = self.written()
        if self.case["form"] == "in place":
            torch.ops.rope_ext.rotate_(out, *self.tables, **self.rest)
        else:
            torch.ops.rope_ext.rotate_out(out, self.x, *self.tables, **self.rest)
        return out

    def differentiate(self):
        """The gradients of `input` and of the weights."""
        rest = {**self.rest, "flags": self.rest["flags"] | flags.TRANSPOSED}
        given = self.input, self.inv_rms, WANTED[self.case["wanted"]]
        if self.case["form"] == "new":
            of_input, of_norm = torch.ops.rope_ext.norm_grad(*given, self.x, *self.tables, **rest)
            return [*of_input, *of_norm]
        out = self.written()
        x = out if self.case["form"] == "in place" else self.x
        return [*torch.ops.rope_ext.norm_grad_out(out, *given, x, *self.tables, **rest), *out]


def check(method, case, start, use_kernels, tokens=5):
    """The kernels that `start` chooses are bit-identical to the CPU's."""
    use_kernels(None)
    expected = getattr(Call(case, tokens), method)()
    start()
    assert_same_bits(getattr(Call(case, tokens), method)(), expected)


# ---- on raw pointers, where the ops convert weights and refuse positions on a CPU ----


def norm_params_of(x, y, cos, sin, weight, inv_rms, **more):
    strided = {"weight_dtype": dtype_name(weight), "weight_stride": weight.stride(0)}
    norm = _introspect.Norm(weight.data_ptr(), **strided, inv_rms=inv_rms.data_ptr())
    return params_of(x, y, cos, sin, False, norm=[norm], eps=EPS, **more)


def check_weights(isa, dtype, weight, use_kernels):
    """A weight of any dtype and stride, (head_dim,), forward and backward."""
    use_kernels(None)
    g, x = (random((1, 3, 2, len(weight)), dtype, seed) for seed in (0, 1))
    cos, sin = (random((3, len(weight) // 2), arithmetic(dtype), seed) for seed in (2, 3))
    (expected,), (r,) = torch.ops.rope_ext.norm_rotate([x], cos, sin, norm=[weight], eps=EPS)
    y, inv_rms = torch.empty_like(x), torch.empty_like(r)
    _introspect.rotate(isa, norm_params_of(x, y, cos, sin, weight, inv_rms))
    assert_same_bits((y, inv_rms), (expected, r))

    given = [g], cos, sin, 0, flags.TRANSPOSED
    expected = [t for (t,) in torch.ops.rope_ext.norm_grad([x], [r], 0xFFFF, *given, norm=[weight], eps=EPS)]
    of_x, of_weight = (torch.empty_like(t) for t in expected)
    block_sums = torch.empty(1, len(weight), dtype=r.dtype)
    rotation = norm_params_of(g, of_x, cos, sin, weight, r, negate_sin=True)
    of_norm = [x.data_ptr(), _introspect.Strides(*x.stride()), block_sums.data_ptr(), of_weight.data_ptr()]
    _introspect.norm_grad(isa, _introspect.NormGradParams(rotation, [_introspect.NormGradTensor(*of_norm)]))
    assert_same_bits((of_x, of_weight), expected)


def check_rows_outside(isa, dtype, head_dim):
    """Rotated channels of a token whose row is outside the table become NaN, and with them the gradients of its
    heads; other channels are normalised."""
    x, cos, sin = random((2, 3, 2, head_dim), dtype), *(random((4, 8), arithmetic(dtype), seed) for seed in (1, 2))
    positions, weight = torch.tensor([[0, -1, 3], [4, 1, 2**62]]), random((head_dim,), arithmetic(dtype), 3)
    outside = (positions < 0) | (positions > 3)
    given = {"rotary_dim": 16, "positions": positions.clamp(0, 3), "norm": [weight], "eps": EPS}
    (expected,), (r,) = torch.ops.rope_ext.norm_rotate([x], cos, sin, **given)
    y, inv_rms = torch.zeros_like(x), torch.zeros_like(r)
    _introspect.rotate(isa, norm_params_of(x, y, cos, sin, weight, inv_rms, positions=positions))
    assert y[outside][..., :16].isnan().all()
    y[..., :16] = torch.where(outside[..., None, None], expected[..., :16], y[..., :16])
    assert_same_bits((y, inv_rms), (expected, r))

    of_x = torch.zeros_like(x)
    rotation = norm_params_of(x, of_x, cos, sin, weight, r, positions=positions)
    of_norm = [_introspect.NormGradTensor(x.data_ptr(), _introspect.Strides(*x.stride()))]
    _introspect.norm_grad(isa, _introspect.NormGradParams(rotation, of_norm))
    assert of_x[outside].isnan().all() and not of_x[~outside].isnan().any()
