"""apply_rotary_pos_emb as most models of transformers define it (huggingface/transformers 5.23, models/llama)."""

from typing import Literal

from torch import Tensor

from ..ops import apply
from ._arguments import at_least, integer, tensor
from ._broadcast import rotate
from ._called import called
from ._errors import check_axis, refused

_X = tensor("x", ranks=at_least(1))


@called(
    q=_X,
    k=_X,
    cos=tensor("cos", ranks=at_least(1)),
    sin=tensor("sin", ranks=at_least(1)),
    unsqueeze_dim=integer(),
)
def apply_rotary_pos_emb(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Rotates all channels of q and k, paired in halves; returns both.

    q, k: (..., head_dim). cos, sin: (..., head_dim), one entry per channel (the two of a pair may differ), which
    broadcast to q and k after unsqueeze(unsqueeze_dim): (batch, seqlen, head_dim) with 1 for "bhsd", 2 for "bshd". The
    result has the dtype of q * cos, as there: float32 where q is bfloat16 and cos float32.

    The result is bit-equal to the original, and where q, k and cos have one dtype the gradients of q and k are too.

    Source: transformers/models/llama/modeling_llama.py, apply_rotary_pos_emb.
    """
    head_dim = q.shape[-1]
    if cos.shape[-1] != head_dim:
        raise refused("cos", f"have the head_dim {head_dim} of q last", cos)
    if (
        head_dim
        and q.dim() == 4
        and cos.dim() == 3
        and unsqueeze_dim in (1, 2)
        and q.dtype == k.dtype == cos.dtype
        and q.shape[3 - unsqueeze_dim] == cos.shape[1]
    ):  # as models call it: this takes a third of the time
        layout: Literal["bhsd", "bshd"] = "bhsd" if unsqueeze_dim == 1 else "bshd"
        q, k = apply((q, k), cos, sin, layout=layout, per_channel=True, rounding="eager")
        return q, k
    if sin.shape != cos.shape:
        raise refused("sin", f"have the shape of cos, {tuple(cos.shape)}", sin)
    check_axis("unsqueeze_dim", unsqueeze_dim, cos.dim() + 1)
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return rotate((q, k), cos, sin, per_channel=True, keep_dtype=False)
