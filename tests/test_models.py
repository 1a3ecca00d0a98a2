"""Models of transformers, eager against patched: the types of tests/conformance that stand for a convention each."""

import pytest
import torch

from tests.conformance import bits
from tests.conformance.transformers import page

pytestmark = [pytest.mark.devices("cpu"), pytest.mark.usefixtures("one_thread")]
TYPES = {
    "llama": "halves",
    "olmo2": "16-bit q, float32 tables",
    "qwen2_vl_vision": "float32, cast back",
    "gpt_neox": "leading channels",
    "zaya": "channels apart in memory",
    "nanochat": "the inverse",
    "gpt_oss": "an entry per pair",
    "gptj": "neighbours, sin before cos",
    "deepseek_v3": "neighbours in, halves out",
    "deepseek_v4": "trailing channels, rotated back",
    "gemma4_vision": "halves of blocks",
    "vjepa2": "two angles within a pair",
    "sam2_video": "more keys than angles",
}


@pytest.mark.parametrize("model_type", TYPES)
def test_patched_has_the_bits_of_eager(model_type):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    from tests.conformance.transformers import compare

    record = compare.measure(model_type)
    assert record["status"] == "patched", record
    assert not page.wrong(record), record
    assert record["fp32"]["noticed"] and record["fp32"]["finite"] and record["bf16"]["finite"]
    assert record["fp32"]["rotations"] and not record["fp32"]["went_on"]
    by_type = record["by type"]  # the type patched, then the model built
    assert by_type["equal"] and by_type["calls"] == record["fp32"]["calls"] and not by_type["lacks"], by_type
    for name, dtype in compare.DTYPES.items():
        gradients = record[name]["gradients"]  # gradients of norms are sums over tokens, in another order
        assert gradients["equal"] or page.only_norms(gradients), gradients
        assert gradients["largest"] <= 8 * torch.finfo(dtype).eps, gradients


def test_difference_compares_bits():
    nan, one = torch.tensor([float("nan"), 1.0]), torch.tensor([1.0])
    assert bits.difference([nan, one], [nan.clone(), one.clone()]) is None
    assert bits.difference([one * 0], [-one * 0]) == 0.0  # -0 and 0 differ, by nothing
    assert bits.difference([one, 2 * one], [one, 2.5 * one], relative=True) == 0.25
    assert bits.difference([one, one], [one]) == bits.difference([one], [one.bfloat16()]) == float("inf")
    assert bits.difference([one], [nan[:1]]) == float("inf")
    assert bits.difference([torch.tensor([1])], [torch.tensor([2])]) == 1.0


def test_page_lists_wrong_models():
    equal = {"equal": True, "finite": True, "noticed": True, "calls": 2, "went_on": 0}
    fine = {"status": "patched", "class": "C", "replaced": [["a.modeling_a.f", "l.d", 2]], "left alone": []}
    records = [
        {**fine, "type": "good", "fp32": equal, "bf16": equal},
        {**fine, "type": "bad", "fp32": equal, "bf16": {**equal, "equal": False, "largest": 0.5}},
        {
            **fine,
            "type": "by type",
            "fp32": equal,
            "bf16": equal,
            "by type": {"equal": True, "calls": 2, "lacks": ["f"], "besides": []},
        },
        {**fine, "type": "fails", "fp32": {"equal": False, "largest": float("inf"), "error": "E"}, "bf16": equal},
        {"type": "gone", "status": "died", "error": "took | long"},
    ]
    pytest.importorskip("transformers", reason="transformers is not installed")
    text = page.page({r["type"]: r for r in records})
    assert "| **wrong** | 3 |" in text
    listed = text.partition("## Wrong")[2].partition("\n## ")[0]
    assert "`bad`" in listed and "`fails`" in listed and "`by type`" in listed and "`good`" not in listed
    assert "| gone | took / long |" in text
