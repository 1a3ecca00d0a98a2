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
    """Rotates channels [start_index, start_index + freqs.shape[-1]) of t by the angles freqs; pairs are (2i, 2i + 1).

    t: (..., head_dim). freqs: one angle per channel, broadcasting to t on the other axes; where it has 2 axes, t has 3,
    or freqs_seq_dim is given, its last t.shape[seq_dim] entries along freqs_seq_dim (default 0) are used. scale:
    number, or Tensor that broadcasts to freqs (xPos).

    Bit-equal to the original with scale 1. With a scale, cos * scale and sin * scale are rounded instead of
    (t * cos) * scale: up to 1.5 units in the last place. Autocast changes nothing here (there on "cuda" only).

    Source: rotary_embedding_torch/rotary_embedding_torch.py, apply_rotary_emb.
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
