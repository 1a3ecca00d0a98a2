"""apply_rotary_pos_emb of Llama and most other models of transformers (huggingface/transformers 5.23, models/llama)."""

from typing import Literal

from torch import Tensor

from ..ops import apply
from ._arguments import at_least, integer, tensor
from ._broadcast import rotate
from ._called import called
from ._errors import check_axis, last_size, refused

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
    """Rotate all channels of q and k, paired in halves.

    Results are bit-identical to the original. So are the gradients of q and k when q, k and cos have the same dtype.

    Args:
        q, k: (..., head_dim), any strides; the numbers of heads may differ.
        cos, sin: (..., head_dim), one entry per channel (the two of a pair may differ). They broadcast to q and k after
            `unsqueeze(unsqueeze_dim)`: (1 or batch, seqlen, head_dim) in a model.
        unsqueeze_dim: 1 for q and k (batch, heads, seqlen, head_dim), 2 for (batch, seqlen, heads, head_dim).

    Returns:
        (q, k), new tensors of the same shapes, in the dtype of q * cos, as in transformers (float32 for bfloat16 q and
        float32 cos).

    Raises:
        ArgumentError: when a shape or value does not fit.
        ArgumentTypeError: when an argument has a wrong type or dtype.

    Equivalent to, for q, k, cos and sin of one dtype and unsqueeze_dim=1::

        rope_ext.apply((q, k), cos, sin, layout="bhsd", rounding="eager")

    Source: transformers 5.23, transformers/models/llama/modeling_llama.py, apply_rotary_pos_emb.
    """
    head_dim = q.shape[-1]
    if cos.shape[-1] != head_dim:
        raise refused("cos", last_size(head_dim, "q"), cos)
    if (
        head_dim
        and q.dim() == 4
        and cos.dim() == 3
        and unsqueeze_dim in (1, 2)
        and q.dtype == k.dtype == cos.dtype
        and q.shape[3 - unsqueeze_dim] == cos.shape[1]
    ):  # the call of a model; this path takes a third of the time
        layout: Literal["bhsd", "bshd"] = "bhsd" if unsqueeze_dim == 1 else "bshd"
        q, k = apply((q, k), cos, sin, layout=layout, per_channel=True, rounding="eager")
        return q, k
    if sin.shape != cos.shape:
        raise refused("sin", f"have the shape of cos, {tuple(cos.shape)}", sin)
    check_axis("unsqueeze_dim", unsqueeze_dim, cos.dim() + 1)
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return rotate((q, k), cos, sin, per_channel=True, keep_dtype=False)
