"""The shapes that bench.py measures: q and k of a layer of a language or video model, 1 KiB to 768 MiB."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes of q and k. first_position: position of token 0; decoding reads the last row of the tables."""

    name: str
    why: str
    batch: int
    seqlen: int
    heads_q: int
    heads_k: int
    head_dim: int
    first_position: int = 0

    def __str__(self):
        return f"B{self.batch} S{self.seqlen} Hq{self.heads_q} Hk{self.heads_k} D{self.head_dim}"

    @property
    def elements(self):
        """The number of elements of q and k together."""
        return self.batch * self.seqlen * (self.heads_q + self.heads_k) * self.head_dim


# The MiB are those of q and k in 16 bits. float32 doubles them, and a result in new memory adds as much again.
SHAPES = [
    Shape("prefill", "40 MiB: a whole prompt, from DRAM", batch=1, seqlen=4096, heads_q=32, heads_k=8, head_dim=128),
    Shape("train", "32 MiB: a batch, as many k as q heads", batch=4, seqlen=2048, heads_q=16, heads_k=16, head_dim=64),
    Shape(
        "decode", "0.3 MiB: a token of 32 sequences", 32, 1, heads_q=32, heads_k=8, head_dim=128, first_position=4095
    ),
    Shape("tiny", "1 KiB: the cost of a call", 1, 1, heads_q=8, heads_k=2, head_dim=64, first_position=4095),
    Shape("long", "80 MiB: one long sequence, few heads", batch=1, seqlen=32768, heads_q=8, heads_k=2, head_dim=128),
    Shape("chunk", "0.5 MiB: of a chunked prefill, in L2", batch=1, seqlen=64, heads_q=24, heads_k=8, head_dim=128),
    Shape("prompt", "8 MiB: a short prompt, in L3", batch=1, seqlen=1024, heads_q=24, heads_k=8, head_dim=128),
    Shape("video", "768 MiB: patches of a clip", batch=1, seqlen=131040, heads_q=12, heads_k=12, head_dim=128),
]
