"""apply_rotary_emb of Meta's Llama (meta-llama/llama, llama/model.py; also in llama3 and llama-models)."""

from torch import Tensor

from ._arguments import tensor
from ._called import called
from ._errors import refused, refused_type
from ._results import rotated

_X = tensor("x", ranks=4)


@called(xq=_X, xk=_X, freqs_cis=tensor("cos", "sin"))
def apply_rotary_emb(xq: Tensor, xk: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply pairs of channels (2i, 2i + 1), read as complex numbers, by freqs_cis.

    Results are equal to the original up to one rounding: PyTorch's complex product fuses a product and a sum on some
    processors. freqs_cis may require grad.

    Args:
        xq, xk: (batch, seqlen, heads, head_dim), any strides; the numbers of heads may differ.
        freqs_cis: (seqlen, head_dim / 2), one row per token; complex64, or complex128 for float64 xq and xk. With
            complex64 the original would round float64 to float32; here that is an error.

    Returns:
        (xq, xk), new tensors of the same shapes and dtype.

    Raises:
        ArgumentError: when a shape does not fit.
        ArgumentTypeError: when freqs_cis is not complex, or an argument has another wrong type or dtype.

    Equivalent to::

        rope_ext.apply((xq, xk), freqs_cis.real, freqs_cis.imag, interleaved=True)

    Source: meta-llama/llama, llama/model.py, apply_rotary_emb.
    """
    if not freqs_cis.is_complex():
        raise refused_type("freqs_cis", "be complex", freqs_cis.dtype)
    expected = xq.shape[1], xq.shape[-1] // 2
    got = tuple(freqs_cis.shape)
    if got != expected:
        raise refused("freqs_cis", f"have shape (seqlen, head_dim / 2) = {tuple(expected)}", got)
    return rotated((xq, xk), freqs_cis.real, freqs_cis.imag, interleaved=True, per_channel=False)
