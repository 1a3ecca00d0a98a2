"""From frequencies and positions to the cos and sin that `rope_ext.apply` takes."""

import torch

from . import frequencies


class RotaryEmbedding(torch.nn.Module):
    """cos and sin of rotary position embedding, for any positions.

    head_dim: channels of a head.
    base: ratio that sets the slowest frequency, "rope_theta" in configurations. Llama 2: 10000, Llama 3: 500000.
    rotary_dim: rotated channels, even; default head_dim.

    Holds Python numbers only, no parameter and no buffer: nothing in the state dict, and nothing that .half(), .to(),
    to_empty() or a meta device can round or lose. Angles are position * inv_freq in float64; cos and sin are rounded
    once. (Hugging Face multiplies in float32, which is off by 2e-3 at position 131072.)
    """

    def __init__(self, head_dim, *, base=10000.0, rotary_dim=None):
        super().__init__()
        rotary_dim = head_dim if rotary_dim is None else rotary_dim
        if rotary_dim % 2 or not 2 <= rotary_dim <= head_dim:
            raise ValueError(f"rope_ext: rotary_dim must be even and in 2 to head_dim {head_dim}, got {rotary_dim}")
        if not base > 0:
            raise ValueError(f"rope_ext: base must be positive, got {base}")
        self.head_dim = head_dim
        self.rotary_dim = rotary_dim
        self.base = float(base)

    def extra_repr(self):
        return f"head_dim={self.head_dim}, rotary_dim={self.rotary_dim}, base={self.base}"

    @property
    def inv_freq(self):
        """(rotary_dim / 2,) float64 on the CPU: radians per position of each pair."""
        return frequencies.default(self.rotary_dim, self.base)

    def tables(self, max_position, *, dtype=torch.float32, device=None):
        """(cos, sin) for positions 0 to max_position - 1, each (max_position, rotary_dim / 2).

        Computed on the CPU and then moved, so that every device gets the same bits. device: default torch's.
        Equivalent to: angles = torch.outer(torch.arange(max_position), inv_freq); (angles.cos(), angles.sin())
        """
        device = torch.empty(0).device if device is None else device
        cos, sin = self._cos_sin(torch.arange(max_position, device="cpu"), dtype)
        return cos.to(device), sin.to(device)

    def forward(self, positions, *, dtype=torch.float32):
        """(cos, sin) for integer positions of any shape, negative ones too: each (*positions.shape, rotary_dim / 2).

        With positions (batch, seqlen) they are tables with one row per token. On the device of positions.
        """
        if positions.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"rope_ext: positions must be int32 or int64, got {positions.dtype}")
        return self._cos_sin(positions, dtype)

    def _cos_sin(self, positions, dtype):
        # Elementwise, never a matmul: TF32 and autocast would round the positions.
        angles = positions.to(torch.float64).unsqueeze(-1) * self.inv_freq.to(positions.device)
        return angles.cos().to(dtype), angles.sin().to(dtype)
