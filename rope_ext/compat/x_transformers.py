"""apply_rotary_pos_emb of x_transformers (lucidrains/x-transformers 2.31.10)."""

from torch import Tensor

from ._arguments import argument, at_least, tensor
from ._broadcast import rotate, scaled_tables
from ._called import called
from ._errors import refused


@called(
    t=tensor("x", ranks=at_least(2)),
    freqs=tensor("cos", "sin", "rotary_dim"),
    scale=argument(float, Tensor),
)
def apply_rotary_pos_emb(t: Tensor, freqs: Tensor, scale: float | Tensor = 1) -> Tensor:
    """Rotate the first freqs.shape[-1] channels of t by the angles freqs; pairs are (2i, 2i + 1).

    Results with scale 1 are bit-identical to the original. With another scale, cos * scale and sin * scale are rounded
    instead of (t * cos) * scale, which differs by up to 1.5 units in the last place.

    Args:
        t: (batch, seqlen, head_dim) or (batch, heads, seqlen, head_dim), any strides.
        freqs: (1 or batch, rows, rotary_dim), one angle in radians per channel; the last seqlen rows are used.
        scale: number, or Tensor of the shape of freqs (xPos).

    Returns:
        A new contiguous tensor with the shape and dtype of t.

    Raises:
        ArgumentError: when a shape or value does not fit.
        ArgumentTypeError: when an argument has a wrong type or dtype.

    Equivalent to, for t of 4 dimensions and scale 1::

        angles = freqs[:, -t.shape[-2] :]
        options = {"interleaved": True, "rotary_dim": freqs.shape[-1], "rounding": "eager"}
        rope_ext.apply(t, angles.cos(), angles.sin(), layout="bhsd", **options)

    Source: x-transformers 2.31.10, x_transformers/x_transformers.py, apply_rotary_pos_emb.
    """
    if freqs.dim() != 3:
        raise refused("freqs", "have 3 dimensions", freqs)
    seqlen, rank = t.shape[-2], t.dim()

    def rows(table: Tensor) -> Tensor:
        table = table[:, max(0, table.shape[1] - seqlen) :]
        return table.unsqueeze(1) if rank == 4 else table

    if isinstance(scale, Tensor):
        if scale.dim() != 3:
            raise refused("scale", "be a number or have 3 dimensions", scale)
        scale = rows(scale)
    cos, sin = scaled_tables(rows(freqs), scale)
    return rotate(t, cos, sin, per_channel=True, interleaved=True, contiguous=(), rotary_dim=freqs.shape[-1])
