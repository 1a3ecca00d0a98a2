"""What mypy finds before the program runs: each line with a comment is an error of that kind, and no other line is."""

import torch

import rope_ext

x, cos, sin = torch.zeros(1, 4, 2, 8), torch.zeros(4, 4), torch.zeros(4, 4)
rope = rope_ext.RotaryEmbedding(8)

rope_ext.apply(x, cos, sin, layout="hbsd")  # arg-type
rope_ext.apply(x, cos, sin, rounding="twice")  # arg-type
rope_ext.apply(x, cos, sin, interleaved="half")  # arg-type
rope_ext.apply(x, cos, sin, norm=1.0, eps=1e-6)  # arg-type
rope_ext.apply(x, cos, sin, position_ids=cos)  # call-arg
rope_ext.apply(x, cos, sin, 0)  # arg-type
rope_ext.apply_({x}, cos, sin)  # type-var
length: int = rope_ext.apply(x, cos, sin)  # assignment
rope_ext.apply_qkv(x, cos, sin)  # call-arg
rope_ext.apply_qkv(x, cos, sin, num_heads=1, layout="hbsd")  # arg-type
rope_ext.apply_qkv_(x, cos, sin, num_heads=1, out_interleaved=True)  # call-arg
rope.apply(x, layout="hbsd")  # arg-type
rope.tables("8192")  # arg-type
rope(None)  # arg-type
rope_ext.RotaryEmbedding(8, schedule="yarm")  # arg-type
rope_ext.RotaryEmbedding("8")  # arg-type
rope_ext.permute_weights(x, 2, to="neox")  # arg-type
rope_ext.patch(x)  # arg-type
rope_ext.patch(torch.nn.Linear(1, 1), rounding="none")  # arg-type
rope_ext.frequencies.linear(8, factor="4")  # arg-type
rope_ext.compat.transformers.apply_rotary_pos_emb(x, x, cos)  # call-arg
