"""apply_rotary_emb of Llama in Meta's code (meta-llama/llama, llama/model.py; the same in llama3 and llama-models)."""

from torch import Tensor

from ._arguments import tensor
from ._called import called
from ._errors import refused, refused_type
from ._results import rotated

_X = tensor("x", ranks=4)


@called(xq=_X, xk=_X, freqs_cis=tensor("cos", "sin"))
def apply_rotary_emb(xq: Tensor, xk: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
    """Multiplies pairs of channels (2i, 2i + 1), as complex numbers, by freqs_cis; returns both.

    xq, xk: (batch, seqlen, heads, head_dim); heads may differ. freqs_cis: (seqlen, head_dim / 2) complex64, one row per
    token (complex128 for float64 x; what PyTorch would do there, rounding x to float32, is an error here).

    Equal up to one rounding of the result: PyTorch's complex product fuses a product and a sum on some processors.
    Differentiable in freqs_cis too.

    Source: llama/model.py, apply_rotary_emb.
    """
    if not freqs_cis.is_complex():
        raise refused_type("freqs_cis", "be complex", freqs_cis.dtype)
    wanted = xq.shape[1], xq.shape[-1] // 2
    got = tuple(freqs_cis.shape)
    if got != wanted:
        raise refused("freqs_cis", f"have shape (seqlen, head_dim / 2), {tuple(wanted)}", got)
    return rotated((xq, xk), freqs_cis.real, freqs_cis.imag, interleaved=True, per_channel=False)
