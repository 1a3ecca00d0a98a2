"""Programs and ONNX graphs of calls in which every two values of two parameters meet, against the calls.

All calls are in one graph, since each graph takes seconds to export. Tables have the bits of calls in PyTorch's ops.
"""

import logging

import pytest
import torch

import rope_ext
from rope_ext.reference import LAYOUTS
from tests.conftest import DTYPES, assert_same_bits
from tests.deployed_forms import (
    COS,
    CU_SEQLENS,
    EPS,
    HEAD_DIM,
    ROPE,
    SIN,
    WEIGHT,
    decomposed,
    inputs,
    run_onnx,
    to_onnx,
)
from tests.pairwise import name_of, pairwise

pytestmark = [pytest.mark.devices("cpu"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

PARAMETERS = {
    "layout": LAYOUTS,
    "table": [
        *("rows, positions", "rows, offset", "channels, offsets", "tokens", "halves", "repeats", "heads"),
        *("inv_freq, positions", "inv_freq, offset"),
    ],
    "pairing": [(False, False), (True, True), (False, True), (True, False)],
    "channels": [(None, 0), (8, 0), (8, 4)],
    "dtype": DTYPES,
    "norm": [False, True],
    "rounding": ["once", "eager"],
    "inverse": [False, True],
}
CASES = pairwise(PARAMETERS)
GENERATOR = torch.Generator().manual_seed(1)
CHANNELS = [torch.rand(COS.shape[0], HEAD_DIM, generator=GENERATOR) for _ in range(2)]
HEADS = [torch.rand(2, 7, 4, HEAD_DIM // 2, generator=GENERATOR) for _ in range(2)]


def in_layout(t, layout):
    return t.permute(["bshd".index(axis) for axis in layout]) if "b" in layout else t[0]


def tables_of(case, positions, width):
    """The arguments of the call that make cos and sin, for `width` rotated channels."""
    layout, kind, pairs = case["layout"], case["table"].partition(",")[0], width // 2
    if kind == "inv_freq":
        return {"inv_freq": ROPE.inv_freq[:pairs]}
    if kind == "channels":
        tables = [t[:, :width] for t in CHANNELS]
    elif kind == "heads":
        tables = [t[..., :pairs] if "b" in layout else t[:1, ..., :pairs] for t in HEADS]
        tables = [in_layout(t, layout) if "b" in layout else t for t in tables]
    else:
        tables = [t[:, :pairs] for t in (COS, SIN)]
        if kind != "rows":
            tables = [t[positions if "b" in layout else positions[:1]] for t in tables]
        if kind == "halves":
            tables = [torch.cat((t, t), dim=-1) for t in tables]
        elif kind == "repeats":
            tables = [t.repeat_interleave(2, dim=-1) for t in tables]
    wide = torch.float64 if case["dtype"] == torch.float64 else torch.float32
    cos, sin = (t.to(case["dtype"] if case["rounding"] == "eager" else wide) for t in tables)
    return {"cos": cos, "sin": sin}


def call(case, q, positions):
    layout, lookup, (rotary_dim, rotary_offset) = case["layout"], case["table"].partition(", ")[2], case["channels"]
    options = {"layout": layout, "rotary_dim": rotary_dim, "rotary_offset": rotary_offset, "inverse": case["inverse"]}
    options["interleaved"], options["out_interleaved"] = case["pairing"]
    options |= {"rounding": case["rounding"]} | tables_of(case, positions, rotary_dim or HEAD_DIM)
    if lookup == "positions":
        options["positions"] = positions if "b" in layout else positions[0]
    elif lookup == "offset":
        options |= {"offset": 5, "cu_seqlens": CU_SEQLENS if layout == "thd" else None}
    elif lookup == "offsets":
        options["offset"] = positions[:, 0] // 2 if "b" in layout else positions[0, 0] // 2
    if case["norm"]:
        options |= {"norm": WEIGHT.to(case["dtype"]), "eps": EPS}
    y = rope_ext.apply(in_layout(q, layout).to(case["dtype"]), **options)
    return y if case["dtype"] == torch.float64 else y.float()


class AllCases(torch.nn.Module):
    def forward(self, q, positions):
        return [call(case, q, positions) for case in CASES]


X = inputs()[::2]  # q and positions
LARGEST = max(float(X[0].abs().max()), 4 * float(WEIGHT.max()))  # of a normalised head of 16: sqrt(16) * weight


@pytest.fixture(scope="module")
def called():
    return AllCases()(*X)


@pytest.fixture(scope="module")
def program():
    return torch.export.export(AllCases(), X)


@pytest.fixture(scope="module")
def from_decompositions(program):
    return decomposed(program).module()(*X)


@pytest.fixture(scope="module", params=[23, 20])
def from_onnx(request, program):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    onnxruntime.set_default_logger_severity(4)
    return run_onnx(to_onnx(program, X, opset_version=request.param, optimize=False), X)


def assert_close(found, wanted, case, error):
    """error: before a result of 16 bits is rounded, which can then be the next number of its dtype."""
    is_16 = case["dtype"] in (torch.bfloat16, torch.float16)
    unit = torch.finfo(case["dtype"]).eps if is_16 and error else 0
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    assert ((found - wanted).abs() <= unit * wanted.abs() + error).all()


def error_of_angles(case):
    """The error of cos and sin of inv_freq, times |x1| + |x2|, plus two roundings of a result."""
    if "inv_freq" not in case["table"]:
        return 0
    return (4.3e-15 + 2**-51 if case["dtype"] == torch.float64 else 1.8e-7 + 2**-22) * 2 * LARGEST


@pytest.mark.parametrize("index", range(len(CASES)), ids=map(name_of, CASES))
def test_decompositions(called, from_decompositions, index):
    found, wanted, error = from_decompositions[index], called[index], error_of_angles(CASES[index])
    if error:
        assert_close(found, wanted, CASES[index], error)
    else:
        assert_same_bits(found, wanted)


@pytest.mark.parametrize("index", range(len(CASES)), ids=map(name_of, CASES))
def test_onnx(called, from_onnx, index):
    """ONNX Runtime may fuse a product and a sum, 2^-23 of x1 and of x2, and adds the squares of norm in another order.

    Where a norm that differs so is rounded to 16 bits, and then products are, each step can give the next number.
    """
    case = CASES[index]
    is_64, is_16 = case["dtype"] == torch.float64, case["dtype"] in (torch.bfloat16, torch.float16)
    unit = 2**-51 if is_64 else 2**-22
    error = error_of_angles(case) + (unit + 2 * unit * case["norm"]) * 2 * LARGEST
    if is_16 and case["rounding"] == "eager":
        error = 4 * torch.finfo(case["dtype"]).eps * LARGEST if case["norm"] else error_of_angles(case)
    assert_close(from_onnx[index], called[index], case, error)
