"""The docstrings of rope_ext.compat: every section is present, and "Equivalent to" is bit-identical."""

import importlib
import inspect
import re
import textwrap

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

import rope_ext
from rope_ext import compat
from tests.compat_cases import BF16, CU, F32, HK, B, D, H, P, S, module
from tests.conftest import random, random_integers

pytestmark = pytest.mark.devices("cpu")
ROWS = 12
FUNCTIONS = [
    f"{name}.{function}"
    for name in compat.__all__
    for function, value in vars(importlib.import_module(f"rope_ext.compat.{name}")).items()
    if inspect.isfunction(value) and value.__module__ == f"rope_ext.compat.{name}" and not function.startswith("_")
]
Q, K = random((B, S, H, D), BF16), random((B, S, HK, D), BF16, 1)
Q_BHSD, K_BHSD = Q.transpose(1, 2), K.transpose(1, 2)
COS, SIN = random((ROWS, P), F32, 2), random((ROWS, P), F32, 3)
FREQS = random((ROWS, 1, 1, P), F32, 4)
PACKED = random((int(CU[-1]), H, D), BF16, 5)
POSITIONS = random_integers(ROWS, (B * S,))
PER_CHANNEL = {"cos": random((1, S, D), BF16, 6), "sin": random((1, S, D), BF16, 7)}
TABLES_2D = {
    name: random((1, 4, 1, D // 2), F32, seed) for seed, name in enumerate(("cos_h", "sin_h", "cos_w", "sin_w"))
}
CALLS = {  # {function: arguments for which its equivalent holds}
    "apex.fused_apply_rotary_pos_emb": {"t": Q.transpose(0, 1), "freqs": FREQS},
    "apex.fused_apply_rotary_pos_emb_cached": {"t": Q.transpose(0, 1), "cos_": FREQS, "sin_": -FREQS},
    "apex.fused_apply_rotary_pos_emb_thd": {"t": PACKED, "cu_seqlens": CU, "freqs": FREQS},
    "apex.fused_apply_rotary_pos_emb_2d": {"t": random((B, 6, H, D), BF16), "img_h": 2, "img_w": 3, **TABLES_2D},
    "flash_attn.apply_rotary_emb": {"x": Q, "cos": COS, "sin": SIN, "interleaved": True, "seqlen_offsets": 2},
    "flash_attn.apply_rotary_emb_qkv_": {"qkv": random((B, S, 3, H, D), BF16), "cos": COS, "sin": SIN},
    "flash_attn.apply_rotary_emb_kv_": {"kv": random((B, S, 2, H, D), BF16), "cos": COS, "sin": SIN},
    "liger.liger_rotary_pos_emb": {"q": Q_BHSD, "k": K_BHSD, "cos": COS[:S], "sin": SIN[:S]},
    "meta_llama.apply_rotary_emb": {"xq": Q, "xk": K, "freqs_cis": torch.complex(COS[:S], SIN[:S])},
    "rotary_embedding_torch.apply_rotary_emb": {"freqs": FREQS[:S, 0, 0], "t": Q_BHSD, "start_index": 2},
    "timm.apply_rot_embed": {"x": Q_BHSD, "sin_emb": PER_CHANNEL["sin"][0], "cos_emb": PER_CHANNEL["cos"][0]},
    "timm.apply_rot_embed_list": {"x": [Q_BHSD], "sin_emb": PER_CHANNEL["sin"][0], "cos_emb": PER_CHANNEL["cos"][0]},
    "timm.apply_rot_embed_cat": {"x": Q_BHSD, "emb": random((S, 2 * D), BF16), "half": True},
    "torchtitan.apply_rotary_emb_complex": {
        "query": Q,
        "key": K,
        "rope_cache": torch.complex(COS[:S], SIN[:S])[None, :, None],
    },
    "torchtitan.apply_rotary_emb_cos_sin": {"query": Q, "key": K, "rope_cache": random((1, S, 1, 2 * D), F32)},
    "torchtune.forward": {"self": module(random((ROWS, P, 2), F32)), "x": Q, "input_pos": torch.arange(S) + 3},
    "torchtune.forward_half": {"self": module(random((ROWS, 2 * D), F32)), "x": Q, "input_pos": torch.arange(S) + 3},
    "transformer_engine.apply_rotary_pos_emb": {
        "t": Q.transpose(0, 1),
        "freqs": FREQS,
        "start_positions": torch.tensor([4, 0]),
    },
    "transformers.apply_rotary_pos_emb": {"q": Q_BHSD, "k": K_BHSD, **PER_CHANNEL},
    "vllm.rotary_embedding": {
        "positions": POSITIONS,
        "query": random((B * S, H * D), BF16),
        "key": None,
        "head_size": D,
        "cos_sin_cache": random((ROWS, P), F32),
        "is_neox": True,
    },
    "x_transformers.apply_rotary_pos_emb": {"t": Q_BHSD, "freqs": FREQS[:, 0, 0][None]},
}
WRITTEN = {  # {function that works in place: the argument that it writes}
    "flash_attn.apply_rotary_emb_qkv_": "qkv",
    "flash_attn.apply_rotary_emb_kv_": "kv",
    "vllm.rotary_embedding": "query",
}


def function_of(path):
    name, _, function = path.partition(".")
    return getattr(importlib.import_module(f"rope_ext.compat.{name}"), function)


def copied(arguments):
    return tree_map_only(torch.Tensor, torch.clone, dict(arguments))


@pytest.mark.parametrize("path", FUNCTIONS)
def test_sections(path):
    """One sentence, then Args, Returns, Raises, Equivalent to and Source; Args names each argument, in order."""
    doc = inspect.getdoc(function_of(path))
    assert re.match(r"[^\n]*[.]\n\n", doc)
    expected = ["Args", "Returns", "Raises", "Equivalent to", "Source"]
    if path == "vllm.register":
        expected.remove("Equivalent to")
    assert re.findall(r"^(Args|Returns|Raises|Equivalent to|Source)\b", doc, re.MULTILINE) == expected
    section = re.search(r"^Args:\n(.*?)\n\n", doc, re.DOTALL | re.MULTILINE)[1]
    names = [name for names in re.findall(r"^    (\w.*?):", section, re.MULTILINE) for name in names.split(", ")]
    assert names == [*inspect.signature(function_of(path)).parameters]


EQUIVALENTS = [(path, {}) for path in CALLS]
EQUIVALENTS += [
    ("torchtune.forward_half", {"rounding": "eager"}),
    ("transformer_engine.apply_rotary_pos_emb", {"fused": True}),
]


@pytest.mark.parametrize("path, options", EQUIVALENTS, ids=str)
def test_equivalents(path, options):
    function = function_of(path)
    given = inspect.signature(function).bind(**copied(CALLS[path]), **options)
    given.apply_defaults()
    arguments = copied(given.arguments)
    got = function(*given.args, **given.kwargs)

    doc = inspect.getdoc(function)
    code = re.search(r"^Equivalent to[^\n]*::\n\n(.*?)\n\n\S", doc, re.DOTALL | re.MULTILINE)[1]
    *statements, last = textwrap.dedent(code).split("\n")
    if options == {"rounding": "eager"}:  # as its comment says
        arguments["self"] = module(arguments["self"].cache.to(BF16))
    namespace = {"torch": torch, "rope_ext": rope_ext, **arguments}
    exec("\n".join(statements), namespace)
    expected = eval(last, namespace)

    if name := WRITTEN.get(path):
        got, expected = given.arguments[name], arguments[name]
        assert not torch.equal(got, CALLS[path][name])
    got, expected = tree_leaves(got), tree_leaves(expected)
    assert got and all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_every_function_has_an_equivalent_call():
    assert CALLS.keys() == set(FUNCTIONS) - {"vllm.register"}
