"""Errors name every dtype of torch as Python does."""

import warnings

import pytest
import torch

import rope_ext

pytestmark = pytest.mark.devices("cpu")
DTYPES = sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)
X, TABLE = torch.zeros(1, 4, 2, 8), torch.zeros(8, 4)
ALLOWED = {
    "x": {torch.float64, torch.float32, torch.bfloat16, torch.float16},
    "cos": {torch.float32},
    "positions": {torch.int32, torch.int64},
    "offset": {torch.int32, torch.int64},
    "cu_seqlens": {torch.int32, torch.int64},
    "out": {torch.float32},
}


def zeros(shape, dtype):
    """Zeros of the dtype; a view of bytes where torch has no function to create them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # complex32 is experimental, quantized dtypes are deprecated
        try:
            return torch.zeros(shape, dtype=dtype)
        except (RuntimeError, NotImplementedError):
            return torch.zeros(*shape[:-1], shape[-1] * dtype.itemsize, dtype=torch.uint8).view(dtype)


@pytest.mark.parametrize("name", ALLOWED)
def test_errors_name_every_dtype_as_python_does(name):
    for dtype in DTYPES:
        if dtype in ALLOWED[name]:
            continue
        arguments = {"x": X, "cos": TABLE, "sin": TABLE}
        shapes = {
            "x": X.shape,
            "out": X.shape,
            "cos": TABLE.shape,
            "positions": (4,),
            "offset": (1,),
            "cu_seqlens": (2,),
        }
        arguments[name] = zeros(shapes[name], dtype)
        if name == "cos":
            arguments["sin"] = arguments["cos"]
        if name == "cu_seqlens":
            arguments |= {"x": X[0], "layout": "thd"}
        with pytest.raises((TypeError, NotImplementedError)) as caught:
            rope_ext.apply(**arguments)
        text = str(caught.value)
        expected = "quantized" if arguments[name].is_quantized else str(dtype).removeprefix("torch.")
        assert text.startswith(f"rope_ext: {name} must ") and text.endswith(expected), (dtype, text)


def test_inv_freq_must_be_of_a_floating_dtype():
    for dtype in DTYPES:
        inv_freq = zeros((4,), dtype)
        for call in (
            lambda t=inv_freq: rope_ext.apply(X, inv_freq=t),
            lambda t=inv_freq: rope_ext.cos_sin(torch.arange(3), t),
            lambda t=inv_freq: rope_ext.angles.revolutions(t),
        ):
            if dtype.is_floating_point and "float4" not in str(dtype):
                call()
                continue
            with pytest.raises(ValueError, match=r"^rope_ext: inv_freq must be floating point ") as caught:
                call()
            assert f"got {str(dtype).removeprefix('torch.')} of (4,)" in str(caught.value)
