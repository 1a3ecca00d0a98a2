"""rope_ext.compat: an argument that is not what its function takes is refused under its own name, and nothing is written.

Every function of test_compat_errors.SIGNATURES, every argument of it, every value of `wrong_values`, by keyword and by
position. A new function needs one line in CALLS.
"""

import inspect
import re

import pytest
import torch

from rope_ext import compat
from tests.compat_cases import F32, B, D, H, P, module
from tests.conftest import random
from tests.test_compat_errors import SIGNATURES

pytestmark = pytest.mark.devices("cpu")  # positions on a GPU are not checked
S, ROWS = 4, 8


def T(*shape):
    return random(shape, F32)


def Z(*shape):
    return torch.complex(T(*shape), T(*shape))


def ints(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


# Right calls: (function, its arguments made anew).
CALLS = [
    (compat.apex.fused_apply_rotary_pos_emb, lambda: {"t": T(S, B, H, D), "freqs": T(ROWS, 1, 1, D)}),
    (
        compat.apex.fused_apply_rotary_pos_emb_2d,
        lambda: {
            "t": T(B, 6, H, D),
            "img_h": 2,
            "img_w": 3,
            **{name: T(1, ROWS, 1, P) for name in ("cos_h", "sin_h", "cos_w", "sin_w")},
        },
    ),
    (
        compat.apex.fused_apply_rotary_pos_emb_cached,
        lambda: {"t": T(S, B, H, D), "cos_": T(ROWS, 1, 1, D), "sin_": T(ROWS, 1, 1, D)},
    ),
    (
        compat.apex.fused_apply_rotary_pos_emb_thd,
        lambda: {"t": T(12, H, D), "cu_seqlens": ints(0, 5, 12), "freqs": T(ROWS, 1, 1, D)},
    ),
    (compat.flash_attn.apply_rotary_emb, lambda: {"x": T(B, S, H, D), "cos": T(ROWS, P), "sin": T(ROWS, P)}),
    (
        compat.flash_attn.apply_rotary_emb,
        lambda: {
            **{"x": T(12, H, D), "cos": T(ROWS, P), "sin": T(ROWS, P), "inplace": True},
            **{"seqlen_offsets": ints(1, 0), "cu_seqlens": ints(0, 5, 12), "max_seqlen": 7},
        },
    ),
    (compat.flash_attn.apply_rotary_emb_kv_, lambda: {"kv": T(B, S, 2, H, D), "cos": T(ROWS, P), "sin": T(ROWS, P)}),
    (
        compat.flash_attn.apply_rotary_emb_qkv_,
        lambda: {
            **{"qkv": T(B, S, H + 4, D), "cos": T(ROWS, P), "sin": T(ROWS, P)},
            **{"cos_k": T(S, 3), "sin_k": T(S, 3), "num_heads_q": H},
        },
    ),
    (
        compat.liger.liger_rotary_pos_emb,
        lambda: {"q": T(B, H, S, D), "k": T(B, 2, S, D), "cos": T(B, 1, S, D), "sin": T(B, 1, S, D)},
    ),
    (compat.meta_llama.apply_rotary_emb, lambda: {"xq": T(B, S, H, D), "xk": T(B, S, 2, D), "freqs_cis": Z(S, P)}),
    (
        compat.rotary_embedding_torch.apply_rotary_emb,
        lambda: {"freqs": T(ROWS, 6), "t": T(B, H, S, D), "freqs_seq_dim": 0},
    ),
    (compat.timm.apply_rot_embed, lambda: {"x": T(B, H, S, D), "sin_emb": T(S, D), "cos_emb": T(S, D)}),
    (compat.timm.apply_rot_embed_cat, lambda: {"x": T(B, H, S, D), "emb": T(S, 2 * D)}),
    (compat.timm.apply_rot_embed_list, lambda: {"x": [T(B, H, S, D)], "sin_emb": T(S, D), "cos_emb": T(S, D)}),
    (
        compat.torchtitan.apply_rotary_emb_complex,
        lambda: {"query": T(B, S, H, D), "key": T(B, S, 2, D), "rope_cache": Z(B, S, 1, P)},
    ),
    (
        compat.torchtitan.apply_rotary_emb_cos_sin,
        lambda: {"query": T(B, S, H, D), "key": T(B, S, 2, D), "rope_cache": T(B, S, 1, 2 * D)},
    ),
    (compat.torchtune.forward, lambda: {"self": module(T(ROWS, P, 2)), "x": T(B, S, H, D)}),
    (compat.torchtune.forward_half, lambda: {"self": module(T(ROWS, 2 * D)), "x": T(B, S, H, D)}),
    (compat.transformer_engine.apply_rotary_pos_emb, lambda: {"t": T(S, B, H, D), "freqs": T(ROWS, 1, 1, D)}),
    (
        compat.transformer_engine.apply_rotary_pos_emb,
        lambda: {"t": T(S, B, H, D), "freqs": T(ROWS, B, 1, D), "cp_size": 2, "cp_rank": 1},
    ),
    (
        compat.transformer_engine.apply_rotary_pos_emb,
        lambda: {
            **{"t": T(12, H, D), "freqs": T(32, 1, 1, D), "tensor_format": "thd", "start_positions": ints(1, 0, 2)},
            **{"cu_seqlens": ints(0, 8, 8, 24), "cp_size": 2, "cp_rank": 1},
        },
    ),
    (
        compat.transformers.apply_rotary_pos_emb,
        lambda: {"q": T(B, H, S, D), "k": T(B, 2, S, D), "cos": T(B, S, D), "sin": T(B, S, D)},
    ),
    (
        compat.vllm.rotary_embedding,
        lambda: {
            **{"positions": torch.arange(S), "query": T(S, H * D), "key": T(S, 2 * D), "head_size": D},
            **{"cos_sin_cache": T(ROWS, 6), "is_neox": True},
        },
    ),
    (compat.x_transformers.apply_rotary_pos_emb, lambda: {"t": T(B, H, S, D), "freqs": T(1, ROWS, 6)}),
]


def wrong_values(right):
    """{label: value}; right: the value of the right call, or its default."""
    values = {str(v): v for v in (None, "bhsd", 1.5, True, [1], -1, 17, 2**40, -(2**63), 2**63, 2**70)}
    values |= {"no number": 10**5000, "scalar": T(), "none": T(0), "six axes": T(1, 1, 1, 1, 2, D)}
    t = getattr(right, "cache", right)
    if not isinstance(t, torch.Tensor):
        return values
    values |= {"row": t[0], "axis more": t[None], "meta": t.to("meta"), "sparse": t.to_sparse()}
    values |= {"narrow": t[..., :1], "odd": t[..., 1:], "empty": t[..., :0]}
    values |= {str(d): t.to(d) for d in (torch.bool, torch.int8, torch.int64) if not t.is_complex()}
    if t.is_floating_point():
        values |= {str(d): t.to(d) for d in (torch.complex64, torch.float8_e4m3fn)}
    return values


def is_right(function, name, label, default):
    """Whether the value is one that the function takes, so that no error is due."""
    if label == str(default) or (label == "True" and isinstance(default, bool)):
        return True
    is_vllm, is_int = function is compat.vllm.rotary_embedding, label.lstrip("-").isdigit()
    return {
        "scale": is_int or label in ("1.5", "scalar"),
        "max_seqlen": label.isdigit() or label in ("no number", "scalar", "none", "six axes"),  # otherwise not used
        "is_neox": label == "True",
        "key": is_vllm and label in ("None", "empty"),
        "query": is_vllm and label == "empty",  # it has no heads
        # narrow: there are no sequences
        "cu_seqlens": label == "torch.int64"
        or (function is compat.apex.fused_apply_rotary_pos_emb_thd and label == "narrow"),
        "seqlen_offsets": label == "torch.int64",
        "start_positions": label == "torch.int64",
        "positions": label == "torch.int64",
    }.get(name, label in BROADCAST.get(function, {}).get(name, ()))


# (function, argument that it does not read), where the right call does not give the argument.
UNUSED = [
    (compat.liger.liger_rotary_pos_emb, "position_ids"),
    (compat.transformer_engine.apply_rotary_pos_emb, "cu_seqlens"),
]
# {function: {argument: labels that are right}}: axes over which tables broadcast, and channels that they leave alone.
BROADCAST = {
    compat.rotary_embedding_torch.apply_rotary_emb: {"t": ("six axes", "row", "axis more", "odd"), "freqs": ("row",)},
    compat.timm.apply_rot_embed: {"x": ("row", "axis more")},
    compat.timm.apply_rot_embed_cat: {"x": ("row", "axis more"), "emb": ("row", "axis more")},
    compat.transformers.apply_rotary_pos_emb: {"q": ("axis more",)},
    compat.x_transformers.apply_rotary_pos_emb: {"t": ("six axes", "row", "axis more", "odd")},
}


def memory(arguments):
    """{name: copy of the whole storage} of the tensors."""
    tensors = {name: getattr(t, "cache", t) for name, t in arguments.items()}
    tensors = {
        n: t for n, t in tensors.items() if isinstance(t, torch.Tensor) and t.is_cpu and t.layout == torch.strided
    }
    return {name: torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage()).clone() for name, t in tensors.items()}


def what_is_wrong(function, names, arguments, by_position):
    """None if the call raises an error that names the argument and writes nothing."""
    before = memory(arguments)
    args, kwargs = [], dict(arguments)
    for name, parameter in names.items() if by_position else ():
        if name not in kwargs or parameter.kind is parameter.KEYWORD_ONLY:
            break
        args.append(kwargs.pop(name))
    try:
        function(*args, **kwargs)
    except (ValueError, TypeError, NotImplementedError) as error:
        found = re.fullmatch(r"rope_ext: (\S+) must .+, got .+", str(error), re.DOTALL)
        if found is None or found[1].removesuffix(".cache") not in names:
            return f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        return "accepted"
    after = memory(arguments)
    return next((f"{name} was written" for name in before if not torch.equal(before[name], after[name])), None)


def test_every_function_is_called():
    assert {function for function, _ in CALLS} == set(SIGNATURES)
    for function, make in CALLS:
        function(**make())


@pytest.mark.parametrize("function, make", CALLS, ids=[f"{f.__module__[16:]}.{f.__name__}" for f, _ in CALLS])
def test_wrong_arguments_are_refused(function, make):
    parameters = inspect.signature(function).parameters
    wrong = {}
    for name, parameter in parameters.items():
        if (function, name) in UNUSED and name not in make():
            continue
        for label, value in wrong_values(make().get(name, parameter.default)).items():
            if is_right(function, name, label, parameter.default):
                continue
            for by_position in (False, True):
                arguments = make()
                arguments[name] = module(value) if name == "self" else value
                if said := what_is_wrong(function, parameters, arguments, by_position):
                    wrong[name, label, by_position] = said
    assert not wrong, "\n".join(f"{case}: {said}" for case, said in wrong.items())
