"""liger_rotary_pos_emb (linkedin/Liger-Kernel 0.8.5), on every device."""

from typing import Any

from torch import Tensor

from ..reference import Rounding
from ._arguments import integer, rounding, tensor
from ._called import called
from ._errors import check_axis, refused
from ._results import rotated


@called(
    q=tensor("x", ranks=4),
    k=tensor("x", ranks=4),
    cos=tensor("cos", "rotary_dim"),
    sin=tensor("sin"),
    unsqueeze_dim=integer(),
    rotary_dim=integer("rotary_dim", optional=True),
    rounding=rounding(),
)
def liger_rotary_pos_emb(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    position_ids: object = None,
    unsqueeze_dim: int = 1,
    rotary_dim: int | None = None,
    *,
    rounding: Rounding = "once",
) -> tuple[Tensor, Tensor]:
    """Rotate the first rotary_dim channels of q and k, paired in halves.

    q and k are never written; Liger overwrites them where their memory has the order batch, seqlen, heads. cos and sin
    receive gradients, which Liger does not compute. The Triton kernel of Liger may fuse a product and a sum.

    Args:
        q, k: (batch, heads, seqlen, head_dim), any strides; the numbers of heads may differ.
        cos, sin: (seqlen, width) or (1 or batch, seqlen, width), also with an axis of size 1 at unsqueeze_dim. Only the
            first rotary_dim / 2 columns are read, as in Liger, which assumes that the second half repeats them.
        position_ids: ignored, as in Liger.
        unsqueeze_dim: the axis of heads of tables with 4 dimensions.
        rotary_dim: number of rotated channels; default: the width of cos, at most head_dim.
        rounding: "eager" rounds as the kernel of Liger does, which computes in the dtype of sin: with 16-bit tables
            each product is rounded, with float32 tables only the result and the gradient. "once" computes in float32
            with 16-bit tables too, which is closer to the exact result by up to one unit in the last place of the
            larger product.

    Returns:
        (q, k), new tensors whose memory has the order (batch, seqlen, heads, head_dim), as in Liger.

    Raises:
        ArgumentError: when a shape or value does not fit.
        ArgumentTypeError: when an argument has a wrong type or dtype.

    Equivalent to, for tables of 2 or 3 dimensions and the default rotary_dim::

        pairs = cos.shape[-1] // 2
        cos, sin = cos[..., :pairs], sin[..., :pairs]
        rope_ext.apply((q, k), cos, sin, layout="bhsd", rotary_dim=2 * pairs)

    Source: Liger-Kernel 0.8.5, liger_kernel/transformers/rope.py, liger_rotary_pos_emb; kernel in
    liger_kernel/ops/rope.py.
    """
    if sin.shape != cos.shape:
        raise refused("sin", f"have the shape of cos, {tuple(cos.shape)}", sin)
    check_axis("unsqueeze_dim", unsqueeze_dim, 4)
    if cos.dim() == 4:
        if cos.shape[unsqueeze_dim] != 1:
            rule = f"have size 1 on axis {unsqueeze_dim}, unsqueeze_dim"
            raise refused("cos", rule, cos)
        cos, sin = cos.squeeze(unsqueeze_dim), sin.squeeze(unsqueeze_dim)
    if cos.dim() == 2:
        cos, sin = cos.unsqueeze(0), sin.unsqueeze(0)
    if cos.dim() != 3:
        raise refused("cos", "have 2 to 4 dimensions", cos)
    rotary_dim = min(cos.shape[-1], q.shape[-1]) if rotary_dim is None else rotary_dim
    pairs = rotary_dim // 2
    if cos.shape[-1] < pairs:
        raise refused("cos", f"have at least {pairs} columns", cos)
    cos, sin = cos[..., :pairs], sin[..., :pairs]
    if sin.dtype.itemsize > 2:
        rounding = "once"  # with float32 tables the kernel of Liger computes in float32, also the gradient
    options: dict[str, Any] = {"rotary_dim": rotary_dim, "per_channel": False, "rounding": rounding}
    return rotated((q, k), cos, sin, layout="bhsd", contiguous=(1, 2), **options)
