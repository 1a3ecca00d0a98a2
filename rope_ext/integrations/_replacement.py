"""The function that `patch` puts in the place of a rotary function."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from .._kept import CPU
from .._torch.library import DEVICES
from ..errors import ArgumentError, ArgumentTypeError
from ..reference import DTYPES, Rounding
from ._dialect import Dialect
from ._fingerprint import function_of
from ._rotation import Rotation, rotate, run


def replacement_of(original: Any, dialect: Dialect, rounding: Rounding) -> Callable[..., Any]:
    """The function that replaces original: it calls rope_ext, or original where rope_ext does not support the call."""
    read, behind = dialect.read, function_of(original)
    assert behind is not None  # its source was recognized

    @functools.wraps(behind)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        for t in (*args, *kwargs.values()):
            if isinstance(t, torch.Tensor):  # the first tensor decides; `apply` itself refuses unsupported others
                known_dtype = t.dtype in DTYPES or not t.dtype.is_floating_point
                known_device = t.device == CPU or t.device.type in DEVICES  # the comparison with CPU is faster
                if not known_dtype or not known_device or t.is_nested:
                    return original(*args, **kwargs)
                break
        else:  # no tensor at all, such as the proxies of torch.fx
            return original(*args, **kwargs)
        found = read(*args, **kwargs)
        try:
            y = rotate(found, rounding) if type(found) is Rotation else run(found, rounding)
        except (ArgumentError, ArgumentTypeError, NotImplementedError):  # `apply` refuses the call
            y = None
        return original(*args, **kwargs) if y is None else y

    vars(replacement)["_rope_ext_original"] = original  # read by `callable_of`
    return replacement
