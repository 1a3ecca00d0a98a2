"""What Inductor puts around the op in a compiled layer: nothing. Strides are those that the op has in eager code."""

import re

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import rope_ext
from tests.conftest import assert_same_bits, random

pytestmark = pytest.mark.devices("cpu")
COS, SIN = rope_ext.RotaryEmbedding(16).tables(8)


def attention(x, to_q, to_k):
    q, k = ((x @ weight).unflatten(-1, (-1, 16)).transpose(1, 2) for weight in (to_q, to_k))
    q, k = rope_ext.apply((q, k), COS, SIN, layout="bhsd")
    return q, scaled_dot_product_attention(q, k, k)


@pytest.mark.parametrize("train", [False, True])
def test_no_copy_before_or_after_the_op(train):
    from torch._inductor.utils import fresh_cache, run_and_get_code

    arguments = [random(shape, torch.float32, i) for i, shape in enumerate([(2, 8, 64), (64, 64), (64, 64)])]
    arguments[1].requires_grad_(train)
    q, y = attention(*arguments)
    torch._dynamo.reset()
    with fresh_cache():
        (compiled_q, compiled_y), (code, *_) = run_and_get_code(torch.compile(attention), *arguments)
    assert_same_bits(compiled_q, q)
    assert compiled_q.stride() == q.stride()
    torch.testing.assert_close(compiled_y, y)
    (inputs,) = re.findall(r"rope_ext\.rotate\.default\(\[(.*?)\], ", code)
    assert inputs.count("reinterpret_tensor(") == 2  # views of what the products wrote
    assert "cpp_fused" not in code  # no kernel of Inductor: no copy anywhere
