"""Every mistake once: the right exception with argument, rule and value, and every tensor as it was."""

import re

import numpy as np
import pytest
import torch

import rope_ext
from tests.conftest import WITHOUT_KERNELS, moved, random, why_no_cuda

INT32, INT64 = torch.int32, torch.int64
T = {
    "x": random((2, 5, 3, 8), torch.float32, 0),
    "k": random((2, 5, 1, 8), torch.float32, 1),
    "half": random((2, 5, 3, 8), torch.bfloat16, 2),
    "double": random((2, 5, 3, 8), torch.float64, 3),
    "packed": random((6, 3, 8), torch.float32, 4),
    "cos": random((9, 4), torch.float32, 5),
    "sin": random((9, 4), torch.float32, 6),
    "token": random((2, 5, 4), torch.float32, 7),
    "head": random((2, 5, 3, 4), torch.float32, 8),
    "cos64": random((9, 4), torch.float64, 9),
    "leaf": random((2, 5, 3, 8), torch.float32, 10).requires_grad_(),
    "integers": torch.ones(2, 5, 3, 8, dtype=INT32),
    "complex": torch.ones(9, 4, dtype=torch.complex64),
}


def call(x="x", cos="cos", sin=None, function=rope_ext.apply, **keywords):
    def get(name):
        return T[name] if isinstance(name, str) else tuple(map(get, name)) if isinstance(name, tuple) else name

    def run():
        tables = get(cos), get(sin if sin is not None else "sin" if cos == "cos" else cos)
        # tensors made when this file was imported are on the CPU
        arguments, options = moved(((get(x), *tables), keywords), T["x"].device.type)
        return function(*arguments, **options)

    return run


def boundaries(*values, dtype=INT32):
    return call("packed", layout="thd", cu_seqlens=torch.tensor(values, dtype=dtype))


def out(tensor):
    return call(out=tensor)


in_place = rope_ext.apply_
V, Y = ValueError, TypeError
MISTAKES = [
    # layout
    (V, call(layout="bsdh"), "layout must be one of bshd, bhsd, sbhd, thd, shd, got 'bsdh'"),
    (V, call(layout=None), "layout must be one of bshd, bhsd, sbhd, thd, shd, got None"),
    (V, call(layout=["bshd"]), "layout must be one of bshd, bhsd, sbhd, thd, shd, got ['bshd']"),
    (V, call(rounding="never"), "rounding must be 'once' or 'eager', got 'never'"),
    (V, call(rounding=np.zeros(2)), "rounding must be 'once' or 'eager', got ndarray of shape (2,), float64"),
    # x
    (Y, call(3.0), "x must be a Tensor or a tuple or list of Tensors, got float"),
    (Y, call(("x", None)), "x must be a Tensor or a tuple or list of Tensors, got tuple of Tensor, NoneType"),
    (V, call(()), "x must hold 1 to 8 tensors, got 0"),
    (V, call(("x",) * 9), "x must hold 1 to 8 tensors, got 9"),
    (
        V,
        call("packed"),
        "x must have 4 dimensions for layout 'bshd', got shape (6, 3, 8): layouts 'thd' and 'shd' have 3",
    ),
    (
        V,
        call(layout="shd"),
        "x must have 3 dimensions for layout 'shd', got shape (2, 5, 3, 8): layouts 'bshd', 'bhsd' and 'sbhd' have 4",
    ),
    (Y, call("integers"), "x must be float64, float32, bfloat16 or float16, got int32"),
    (Y, call(("x", "half")), "x must hold tensors of the dtype of the first, float32, got bfloat16"),
    (
        V,
        call(("x", T["x"][:, :4])),
        "x must hold tensors with the batch and seqlen of the first, (2, 5, 3, 8), got (2, 4, 3, 8): layout='bhsd' or one call per tensor fits",
    ),
    (
        V,
        call(("x", T["x"][..., :6])),
        "rotary_dim must be given when the tensors differ in head_dim, got None with 8 and 6",
    ),
    # channels
    (V, call(rotary_dim=5), "rotary_dim must be even (channels are rotated in pairs), got 5"),
    (V, call(T["x"][..., :7]), "x must have an even number of channels unless rotary_dim is given, got 7"),
    (
        V,
        call(rotary_offset=3),
        "rotary_offset must leave an even number of channels unless rotary_dim is given, got 3",
    ),
    (V, call(rotary_dim=0), "rotary_dim must be at least 2, got 0"),
    (V, call(rotary_dim=-2), "rotary_dim must be at least 2, got -2"),
    (V, call(rotary_dim=10), "rotary_dim must fit head_dim 8 from rotary_offset 0, got 10"),
    (V, call(rotary_dim=4, rotary_offset=6), "rotary_dim must fit head_dim 8 from rotary_offset 6, got 4"),
    (V, call(rotary_offset=-2), "rotary_offset must be within the head, 0 to 7, got -2"),
    (Y, call(rotary_dim=4.0), "rotary_dim must be an int, got 4.0"),
    (Y, call(rotary_offset="0"), "rotary_offset must be an int, got '0'"),
    (Y, call(rotary_offset=np.float32(0.5)), f"rotary_offset must be an int, got {np.float32(0.5)!r}"),
    (Y, call(rotary_dim=np.float64(4.0)), f"rotary_dim must be an int, got {np.float64(4.0)!r}"),
    (Y, call(rotary_dim=True), "rotary_dim must be an int, got True"),
    (Y, call(rotary_offset=np.False_), f"rotary_offset must be an int, got {np.False_!r}"),
    (Y, call(interleaved="yes"), "interleaved must be True or False, got 'yes'"),
    (Y, call(inverse="no"), "inverse must be True or False, got 'no'"),
    # tables
    (Y, call(cos=[1.0], sin="sin"), "cos must be a Tensor, got [1.0]: use torch.tensor(cos)"),
    (Y, call(cos="cos", sin=0.5), "sin must be a Tensor, got 0.5"),
    (Y, call(cos="complex"), "cos must be float64, float32, bfloat16 or float16, got complex64"),
    (Y, call(cos="cos64"), "cos must be float32 or the dtype of x, float32, got float64"),
    (Y, call("double"), "cos must be float64 for float64 x, got float32"),
    (Y, call("half", cos=T["cos"].half()), "cos must be float32 or the dtype of x, bfloat16, got float16"),
    (Y, call(sin="cos64"), "sin must have the dtype of cos, float32, got float64"),
    (
        V,
        call(cos=T["cos"][0], sin="sin"),
        "cos must have 2 (rows, width), 3 (batch, seqlen, width) or 4 dimensions, got shape (4,)",
    ),
    (V, call(sin=T["sin"][1:]), "sin must have the shape of cos, (9, 4), got (8, 4)"),
    (
        V,
        call(cos=T["cos"][:, :3]),
        "cos must have width 4 (one entry per pair) or 8 (one per channel) for rotary_dim 8, got width 3: rotary_dim=6 fits",
    ),
    (
        V,
        call(cos="cos", rotary_dim=6),
        "cos must have width 3 (one entry per pair) or 6 (one per channel) for rotary_dim 6, got width 4",
    ),
    (
        V,
        call(cos=T["token"][:, :4]),
        "cos must have batch 1 or 2 and seqlen 5, those of x, when it has 3 dimensions, got shape (2, 4, 4)",
    ),
    (
        V,
        call(cos=T["token"].repeat(2, 1, 1)),
        "cos must have batch 1 or 2 and seqlen 5, those of x, when it has 3 dimensions, got shape (4, 5, 4)",
    ),
    (
        V,
        call(("x", "k"), cos="head"),
        "cos must have 1 head or the 1 heads of x on the heads axis, got shape (2, 5, 3, 4)",
    ),
    (
        V,
        call(cos=T["head"][:, :4]),
        "cos must have batch 1 or 2 and seqlen 5, those of x, when it has 4 dimensions, got shape (2, 4, 3, 4)",
    ),
    # positions
    (Y, call(positions=torch.arange(5.0)), "positions must be int32 or int64, got float32"),
    (Y, call(positions=[0, 1]), "positions must be a Tensor, got [0, 1]: use torch.tensor(positions)"),
    (V, call(positions=torch.arange(4)), "positions must have shape (5,) or (2, 5), got (4,)"),
    (V, call(positions=torch.zeros(3, 5, dtype=INT64)), "positions must have shape (5,) or (2, 5), got (3, 5)"),
    (V, call(positions=torch.zeros(3, 2, 5, dtype=INT64)), "positions must have shape (5,) or (2, 5), got (3, 2, 5)"),
    (
        V,
        call("packed", layout="thd", positions=torch.zeros(1, 6, dtype=INT64)),
        "positions must have shape (6,), got (1, 6): positions[0] fits",
    ),
    (
        V,
        call(cos="token", positions=torch.arange(5)),
        "positions must be None when the tables have one row per token, got cos of shape (2, 5, 4)",
    ),
    # offset
    (V, call(offset=5), "offset must index rows 0 to 8 of the table, got row 9 for token 4 of batch 0"),
    (V, call(offset=-1), "offset must index rows 0 to 8 of the table, got row -1 for token 0 of batch 0"),
    (V, call(offset=torch.tensor([0, 1, 2])), "offset must be an int or have shape (2,), got (3,)"),
    (V, call(offset=torch.tensor([[1]])), "offset must be an int or have shape (2,), got (1, 1)"),
    (Y, call(offset=torch.tensor([0.0, 1.0])), "offset must be int32 or int64, got float32"),
    (Y, call(offset=1.5), "offset must be an int or a Tensor, got 1.5"),
    (Y, call(offset=True), "offset must be an int or a Tensor, got True"),
    (Y, call(offset=np.float32(1.0)), f"offset must be an int or a Tensor, got {np.float32(1.0)!r}"),
    (
        V,
        call(cos="token", offset=1),
        "offset must be 0 when the tables have one row per token, got cos of shape (2, 5, 4)",
    ),
    # cu_seqlens
    (Y, boundaries(0, 6, dtype=torch.int16), "cu_seqlens must be int32 or int64, got int16"),
    (
        V,
        call("packed", layout="shd", cu_seqlens=torch.tensor([0, 6], dtype=INT32)),
        "cu_seqlens must come with layout 'thd', got shd",
    ),
    (
        V,
        call("packed", layout="thd", cu_seqlens=torch.zeros(1, 2, dtype=INT32)),
        "cu_seqlens must have shape (nseq + 1,), got (1, 2)",
    ),
    (
        V,
        call("packed", layout="thd", cu_seqlens=torch.tensor([0, 6], dtype=INT32), positions=torch.arange(6)),
        "cu_seqlens must be None when positions are given, got both",
    ),
    (
        V,
        call("packed", layout="thd", cu_seqlens=torch.tensor([0, 6], dtype=INT32), offset=torch.tensor([0, 0])),
        "offset must be an int or have shape (1,), got (2,)",
    ),
    # devices
    (V, call(cos=T["cos"].to("meta"), sin="sin"), "cos must be on the device of x, cpu, got meta"),
    (V, call(positions=torch.arange(5, device="meta")), "positions must be on the device of x, cpu, got meta"),
    (
        V,
        call(function=in_place, cos=T["cos"].to("meta"), sin="sin"),
        "cos must be on the device of x, cpu, got meta",
    ),
    (V, out(torch.empty(2, 5, 3, 8, device="meta")), "out must be on the device of x, cpu, got meta"),
    # what is written
    (V, out(torch.empty(2, 5, 3, 4)), "out must have the shape of x, (2, 5, 3, 8), got (2, 5, 3, 4)"),
    (Y, out(torch.empty(2, 5, 3, 8, dtype=torch.float64)), "out must have the dtype of x, float32, got float64"),
    (
        Y,
        call(("x",), out=torch.empty(2, 5, 3, 8)),
        "out must be a Tensor or a tuple or list of Tensors, like x, got Tensor",
    ),
    (V, call(("x", "k"), out=(torch.empty(2, 5, 3, 8),)), "out must hold 2 tensors, as many as x, got 1"),
    (
        V,
        out(torch.empty(1, 5, 3, 8).expand(2, 5, 3, 8)),
        "out must have no internal overlap, got strides (0, 24, 8, 1)",
    ),
    (
        V,
        call(("x", "x"), function=in_place),
        "x must not overlap another tensor that is written, got memory shared with a tensor of shape (2, 5, 3, 8)",
    ),
    (
        V,
        call("leaf", function=in_place),
        "x must not be a leaf that requires grad, or a view of one, when it is written, got one of shape (2, 5, 3, 8)",
    ),
    (
        V,
        call("leaf", out=torch.empty(2, 5, 3, 8)),
        "out must be None when a derivative is recorded, got tensors while x, cos, sin or out requires grad",
    ),
    (
        V,
        out(torch.zeros(2, 5, 3, 8, requires_grad=True)),
        "out must be None when a derivative is recorded, got tensors while x, cos, sin or out requires grad",
    ),
    # heads of tables
    (
        V,
        call("x", cos=torch.ones(2, 5, 4, 4)),
        "cos must have 1 head or the 3 heads of x on the heads axis, got shape (2, 5, 4, 4)",
    ),
    (V, call(rounding="twice"), "rounding must be 'once' or 'eager', got 'twice'"),
    (V, call(rounding=None), "rounding must be 'once' or 'eager', got None"),
    (TypeError, call(out_interleaved=1), "out_interleaved must be True, False or None, got 1"),
    (
        V,
        lambda: rope_ext.apply(T["x"], T["cos"], T["sin"], out_interleaved=True, out=T["x"]),
        "out_interleaved must match the pairing of x when x is written, got True",
    ),
]
# Values of positions, offset and cu_seqlens are checked on the CPU only. For a GPU see test_cuda_positions.py.
ROWS_OUTSIDE = [
    (
        V,
        call(positions=torch.tensor([0, 1, 9, 3, 4])),
        "positions must index rows 0 to 8 of the table, got row 9 for token 2 of batch 0",
    ),
    (
        V,
        call(positions=torch.tensor([[0] * 5, [0, 0, 0, 0, -1]])),
        "positions must index rows 0 to 8 of the table, got row -1 for token 4 of batch 1",
    ),
    (
        V,
        call(positions=torch.arange(5), offset=5),
        "positions must index rows 0 to 8 of the table, got row 9 for token 4 of batch 0",
    ),
    (
        V,
        call(offset=torch.tensor([0, 7])),
        "offset must index rows 0 to 8 of the table, got row 11 for token 4 of batch 1",
    ),
    (
        V,
        call(offset=torch.tensor([0, -3])),
        "offset must index rows 0 to 8 of the table, got row -3 for token 0 of batch 1",
    ),
    (V, boundaries(1, 6), "cu_seqlens must start at 0, got 1"),
    (V, boundaries(0, 4, 3), "cu_seqlens must ascend, got 3 after 4 at [2]"),
    (V, boundaries(0, 3, 7), "cu_seqlens must end within the 6 tokens of x, got 7"),
    (
        V,
        call("packed", layout="thd", cu_seqlens=torch.tensor([0, 6], dtype=INT32), offset=4),
        "offset must index rows 0 to 8 of the table, got row 9 for sequence 0",
    ),
    (
        V,
        call("packed", layout="thd", cu_seqlens=torch.tensor([0, 6], dtype=INT32), offset=-1),
        "offset must index rows 0 to 8 of the table, got row -1 for sequence 0",
    ),
    (
        V,
        call("double", cos="cos64", offset=torch.tensor([[0, 9], [6, 9]])[:, 0]),
        "offset must index rows 0 to 8 of the table, got row 10 for token 4 of batch 1",
    ),
]


def check_refused(exception, run, message):
    before = {name: (t.detach().clone(), t._version) for name, t in T.items()}
    with pytest.raises(exception, match=f"^rope_ext: {re.escape(message)}$"):
        run()
    for name, (values, version) in before.items():
        assert torch.equal(T[name], values) and T[name]._version == version


@pytest.mark.parametrize(("exception", "run", "message"), MISTAKES, ids=[m[2][:70] for m in MISTAKES])
def test_mistake(exception, run, message):
    check_refused(exception, run, message.replace("device of x, cpu", f"device of x, {T['x'].device}"))


@pytest.mark.devices("cpu")
@pytest.mark.parametrize(("exception", "run", "message"), ROWS_OUTSIDE, ids=[m[2][:70] for m in ROWS_OUTSIDE])
def test_row_outside_the_table(exception, run, message):
    check_refused(exception, run, message)


def test_sparse_tensors_are_refused():
    backend = "SparseCUDA" if T["x"].is_cuda else "SparseCPU"
    check_refused(
        NotImplementedError,
        call(T["x"].to_sparse()),
        "x must be a strided tensor, got torch.sparse_coo; use to_dense()"
        f" (torch: Could not run 'rope_ext::rotate' with arguments from the '{backend}' backend)",
    )


@pytest.mark.devices("cpu")
@pytest.mark.skipif(why_no_cuda() != WITHOUT_KERNELS, reason="needs a GPU and a build without kernels for it")
def test_build_without_cuda_kernels():
    """The error says how to build them."""
    with pytest.raises(NotImplementedError, match=r"^rope_ext: .*rebuild"):
        rope_ext.apply(T["x"].cuda(), T["cos"].cuda(), T["sin"].cuda())


@pytest.mark.devices("cpu")
def test_a_bad_position_leaves_x_as_it_was():
    """The last token is the bad one: nothing before it may have been written."""
    x = T["x"].clone()
    with pytest.raises(ValueError, match="got row 9 for token 4 of batch 1"):
        rope_ext.apply_(x, T["cos"], T["sin"], positions=torch.tensor([[0] * 5, [0, 1, 2, 3, 9]]))
    assert torch.equal(x, T["x"])


def test_constructor_of_rotary_embedding():
    for keywords, message in (
        (
            {"head_dim": 7},
            "head_dim must be even when rotary_dim is not given, got 7: rotary_dim=6 leaves one channel unrotated",
        ),
        ({"head_dim": 0}, "head_dim must be at least 2, got 0"),
        ({"head_dim": 0, "rotary_dim": 2}, "head_dim must be at least 2, got 0"),
        ({"head_dim": 7, "rotary_dim": 7}, "rotary_dim must be even and in 2 to head_dim 7, got 7"),
        ({"head_dim": 8, "rotary_dim": 10}, "rotary_dim must be even and in 2 to head_dim 8, got 10"),
        ({"head_dim": 8, "base": 0.0}, "base must be positive, got 0.0"),
    ):
        with pytest.raises(ValueError, match=f"^rope_ext: {re.escape(message)}$"):
            rope_ext.RotaryEmbedding(**keywords)
    with pytest.raises(TypeError, match=r"^rope_ext: positions must be int32, int64 or float32, got bfloat16, which"):
        rope_ext.RotaryEmbedding(8)(torch.arange(3.0).bfloat16())
    with pytest.raises(
        TypeError, match=r"^rope_ext: positions must be a Tensor, got \[0, 1\]: use torch\.tensor\(positions\)"
    ):
        rope_ext.RotaryEmbedding(8)([0, 1])
    for call in (
        rope_ext.RotaryEmbedding(8).tables,
        lambda n, dtype: rope_ext.RotaryEmbedding(8)(torch.arange(n), dtype=dtype),
    ):
        with pytest.raises(
            TypeError, match=r"^rope_ext: dtype must be a floating-point dtype, got 'half': use torch\.float16"
        ):
            call(4, dtype="half")
        with pytest.raises(
            TypeError, match=r"^rope_ext: dtype must be a floating-point dtype, got ndarray of shape \(3,\)"
        ):
            call(4, dtype=np.arange(3))


@pytest.mark.parametrize("keyword", ["interleaved", "inverse"])
@pytest.mark.parametrize("value", [0, 1, 1.0, [1], "yes", None])
def test_switches_are_true_or_false(keyword, value):
    """1 and 1.0 are refused, although a dictionary takes them for True."""
    for layout in ("bshd", "bhsd"):
        rule = re.escape(f"rope_ext: {keyword} must be True or False, got {value!r}")
        with pytest.raises(TypeError, match=f"^{rule}$"):
            rope_ext.apply(
                torch.ones(2, 5, 5, 8), torch.ones(5, 4), torch.ones(5, 4), layout=layout, **{keyword: value}
            )


def test_offset_must_not_be_none():
    with pytest.raises(TypeError, match=r"^rope_ext: offset must be an int or a Tensor, got None$"):
        rope_ext.apply(torch.ones(2, 5, 5, 8), torch.ones(5, 4), torch.ones(5, 4), offset=None)


def test_ints_of_numpy_are_ints():
    x, cos, sin = T["x"], T["cos"], T["sin"]
    expected = rope_ext.apply(x, cos[:, :2], sin[:, :2], rotary_dim=4, rotary_offset=2, offset=1)
    ints = {"rotary_dim": np.int32(4), "rotary_offset": np.int64(2), "offset": np.uint8(1)}
    assert torch.equal(rope_ext.apply(x, cos[:, :2], sin[:, :2], **ints), expected)


@pytest.mark.parametrize("name", ["x", "out"])
def test_lazy_negations_are_not_written(name):
    negation = torch.complex(torch.zeros_like(T["x"]), T["x"]).conj().imag  # PyTorch reads it as -imag
    before = negation.clone()
    with pytest.raises(ValueError) as caught:
        if name == "x":
            rope_ext.apply_(negation, T["cos"], T["sin"])
        else:
            rope_ext.apply(T["x"], T["cos"], T["sin"], out=negation)
    assert str(caught.value) == (
        f"rope_ext: {name} must not be a lazy negation when it is written, got a lazy negation of shape (2, 5, 3, 8);"
        " use resolve_neg()"
    )
    assert torch.equal(negation, before)
    assert torch.equal(
        rope_ext.apply(negation, T["cos"], T["sin"]), rope_ext.apply(negation.resolve_neg(), T["cos"], T["sin"])
    )


@pytest.mark.parametrize("name", ["cos", "sin", "positions"])
def test_learned_tables_on_another_device_are_refused(name):
    arguments = {"cos": T["cos"].clone().requires_grad_(), "sin": T["sin"], "positions": torch.arange(5)}
    arguments[name] = torch.empty_like(arguments[name], device="meta")
    with pytest.raises(ValueError, match=rf"^rope_ext: {name} must be on the device of x, .*, got meta$"):
        rope_ext.apply(T["x"], **arguments)


INT_OF_MANY_DIGITS = 10**5000  # Python refuses to print it


@pytest.mark.parametrize("name", ["offset", "rotary_dim", "rotary_offset"])
def test_ints_too_long_to_print_are_described(name):
    with pytest.raises(ValueError, match=rf"^rope_ext: {name} must .*, got an int of 16610 bits$"):
        rope_ext.apply(T["x"], T["cos"], T["sin"], **{name: INT_OF_MANY_DIGITS})
    assert INT_OF_MANY_DIGITS.bit_length() == 16610


@pytest.mark.parametrize("name", ["x", "cos", "positions"])
def test_inference_tensors_are_refused_where_a_derivative_is_recorded(name):
    arguments = {"x": T["x"].clone().requires_grad_(), "cos": T["cos"], "sin": T["sin"], "positions": torch.arange(5)}
    arguments["cos"] = arguments["cos"].clone().requires_grad_(name == "x")
    with torch.inference_mode():
        arguments[name] = arguments[name].detach().clone()
    for function in (rope_ext.apply, rope_ext.apply_):
        given = dict(arguments) if name == "x" else arguments | {"x": arguments["x"] + 0}
        before = given["x"].detach().clone()
        with pytest.raises(
            ValueError, match=rf"^rope_ext: {name} must not be an inference tensor .*, got one of shape "
        ):
            function(**given)
        assert torch.equal(given["x"].detach(), before)


def test_seqlen_must_be_an_int():
    for rope in (
        rope_ext.RotaryEmbedding(8),
        rope_ext.RotaryEmbedding(8, schedule="dynamic_ntk", factor=2.0, max_position=4),
    ):
        for call in (rope.apply, rope):
            with pytest.raises(TypeError, match=r"^rope_ext: seqlen must be an int, got \[\]$"):
                call(T["x"] if call == rope.apply else torch.arange(4), seqlen=[])
        with pytest.raises(TypeError, match=r"^rope_ext: seqlen must be an int, got \[\]$"):
            rope.tables(4, seqlen=[])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"offset": "1"}, "offset must be an int or a Tensor, got '1'"),
        ({"offset": 2**63}, "offset must be at least -2^63 and below 2^63, got 9223372036854775808"),
        ({"offset": torch.tensor([0.0, 1.0])}, "offset must be int32 or int64, got float32"),
        ({"offset": torch.tensor([[1]])}, "offset must be an int or have shape (2,), got (1, 1)"),
        ({"offset": torch.tensor([1, 2, 3])}, "offset must be an int or have shape (2,), got (3,)"),
        (
            {"positions": [0, 1, 2, 3, 4]},
            "positions must be a Tensor, got [0, 1, 2, 3, 4]: use torch.tensor(positions)",
        ),
        ({"layout": "bsdh"}, "layout must be one of bshd, bhsd, sbhd, thd, shd, got 'bsdh'"),
        ({"layout": 4}, "layout must be one of bshd, bhsd, sbhd, thd, shd, got 4"),
        (
            {"layout": "shd"},
            "x must have 3 dimensions for layout 'shd', got shape (2, 5, 3, 8): layouts 'bshd', 'bhsd' and 'sbhd' have 4",
        ),
    ],
)
@pytest.mark.parametrize("precision", ["exact", "hf"])
def test_rope_apply_raises_the_errors_of_apply(options, message, precision):
    options = moved(options, T["x"].device.type)
    with pytest.raises((TypeError, ValueError)) as caught:
        rope_ext.RotaryEmbedding(8, precision=precision).apply(T["x"], **options)
    assert str(caught.value) == "rope_ext: " + message


def test_an_empty_list_is_refused_with_tables_on_meta_too():
    meta = torch.empty(9, 4, device="meta")
    for call in (rope_ext.apply, rope_ext.apply_):
        with pytest.raises(ValueError, match=r"^rope_ext: x must hold 1 to 8 tensors, got 0$"):
            call([], meta, meta)
