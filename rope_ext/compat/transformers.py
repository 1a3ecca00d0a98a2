"""apply_rotary_pos_emb as most models of transformers define it (huggingface/transformers 5.23, models/llama)."""

from ._broadcast import rotate
from ._errors import called, require


@called(x="q")
def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
    """Turns all channels of q and k, paired in halves; returns both.

    q, k: (..., head_dim). cos, sin: (..., head_dim), one entry per channel (the two of a pair may differ), which
    broadcast to q and k after unsqueeze(unsqueeze_dim): (batch, seqlen, head_dim) with 1 for "bhsd", 2 for "bshd". The
    result has the dtype of q * cos, as there: float32 where q is bfloat16 and cos float32.

    Bit-equal in float32 and where cos is float32. With 16-bit cos both products are rounded there, here only the
    result: up to one unit in the last place of the larger product.

    Source: transformers/models/llama/modeling_llama.py, apply_rotary_pos_emb.
    """
    rule, got = f"have the head_dim {q.shape[-1]} of q last", f"shape {tuple(cos.shape)}"
    require(cos.shape[-1] == q.shape[-1], "cos", rule, got)
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return rotate((q, k), cos, sin, keep_dtype=False)
