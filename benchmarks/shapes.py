"""The shapes that bench.py measures: one layer of a language model in five situations."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes of q and k. first_position: of token 0; decoding reads the end of the tables (at 0 nothing would turn)."""

    name: str
    batch: int
    seqlen: int
    heads_q: int
    heads_k: int
    head_dim: int
    first_position: int = 0

    def __str__(self):
        return f"B{self.batch} S{self.seqlen} Hq{self.heads_q} Hk{self.heads_k} D{self.head_dim}"


SHAPES = [
    Shape("prefill", batch=1, seqlen=4096, heads_q=32, heads_k=8, head_dim=128),
    Shape("train", batch=4, seqlen=2048, heads_q=16, heads_k=16, head_dim=64),
    Shape("decode", batch=32, seqlen=1, heads_q=32, heads_k=8, head_dim=128, first_position=4095),
    Shape("tiny", batch=1, seqlen=1, heads_q=8, heads_k=2, head_dim=64, first_position=4095),  # call overhead only
    Shape("long", batch=1, seqlen=32768, heads_q=8, heads_k=2, head_dim=128),
]
