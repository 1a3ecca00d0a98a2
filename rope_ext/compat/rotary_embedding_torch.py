"""apply_rotary_emb of rotary_embedding_torch (lucidrains/rotary-embedding-torch 0.9.1)."""

from typing import Any

from torch import Tensor

from ._arguments import argument, at_least, integer, tensor
from ._broadcast import rotate, scaled_tables
from ._called import called
from ._errors import check_axis


@called(
    freqs=tensor("cos", "sin", "rotary_dim", ranks=at_least(1)),
    t=tensor("x", ranks=at_least(1)),
    start_index=integer("rotary_offset"),
    scale=argument(float, Tensor),
    seq_dim=integer(),
    freqs_seq_dim=integer(optional=True),
)
def apply_rotary_emb(
    freqs: Tensor,
    t: Tensor,
    start_index: int = 0,
    scale: float | Tensor = 1.0,
    seq_dim: int = -2,
    freqs_seq_dim: int | None = None,
) -> Tensor:
    """Rotate channels [start_index, start_index + freqs.shape[-1]) of t by the angles freqs; pairs are (2i, 2i + 1).

    Results with scale 1 are bit-identical to the original. With another scale, cos * scale and sin * scale are rounded
    instead of (t * cos) * scale, which differs by up to 1.5 units in the last place. torch.autocast has no effect here;
    the original disables it on "cuda" only.

    Args:
        freqs: angles in radians, one per channel: (..., rotary_dim), broadcast to t on the other axes. If freqs has 2
            axes, t has 3, or freqs_seq_dim is given, only the last t.shape[seq_dim] entries along freqs_seq_dim are
            used.
        t: (..., head_dim), any strides.
        start_index: first rotated channel.
        scale: number, or Tensor that broadcasts to freqs (xPos).
        seq_dim: axis of t that holds the tokens.
        freqs_seq_dim: axis of freqs that holds the positions; default 0 where it is needed.

    Returns:
        A new contiguous tensor with the shape and dtype of t.

    Raises:
        ArgumentError: when a shape or value does not fit.
        ArgumentTypeError: when an argument has a wrong type or dtype.

    Equivalent to, for t (batch, heads, seqlen, head_dim), freqs (seqlen, rotary_dim) and scale 1::

        options = {"interleaved": True, "rotary_dim": freqs.shape[-1], "rotary_offset": start_index}
        rope_ext.apply(t, freqs.cos(), freqs.sin(), layout="bhsd", rounding="eager", **options)

    Source: rotary-embedding-torch 0.9.1, rotary_embedding_torch/rotary_embedding_torch.py, apply_rotary_emb.
    """
    if freqs_seq_dim is None and (freqs.dim() == 2 or t.dim() == 3):
        freqs_seq_dim = 0
    if freqs_seq_dim is not None:
        check_axis("seq_dim", seq_dim, t.dim())
        check_axis("freqs_seq_dim", freqs_seq_dim, freqs.dim())
        length = min(t.shape[seq_dim], freqs.shape[freqs_seq_dim])
        freqs = freqs.narrow(freqs_seq_dim, freqs.shape[freqs_seq_dim] - length, length)
    cos, sin = scaled_tables(freqs, scale)
    channels: dict[str, Any] = {"rotary_dim": freqs.shape[-1], "rotary_offset": start_index}
    return rotate(t, cos, sin, per_channel=True, interleaved=True, contiguous=(), **channels)
