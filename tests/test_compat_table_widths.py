"""rope_ext.compat and patched models say how wide their tables are: ROPE_EXT_CHECK_TABLES refuses none of their calls."""

import pytest
import torch

from rope_ext import compat
from rope_ext.integrations._rotation import Convention, Rotation, rotate
from tests.compat_cases import F32, module
from tests.conftest import random
from tests.test_compat_arguments import CALLS

X = random((2, 5, 3, 64), F32)
HALF = random((5, 16), F32, seed=1)
TWICE = torch.cat((HALF, HALF), -1)  # entries of 32 pairs that repeat, as those of 32 channels would
DIFFERENT = random((5, 64), F32, seed=2)  # the two entries of a pair differ
COMPLEX = torch.complex(TWICE, TWICE)
POSITIONS = torch.arange(5).repeat(2, 1)


@pytest.mark.parametrize("function, make", CALLS, ids=[f"{f.__module__[16:]}.{f.__name__}" for f, _ in CALLS])
def test_two_entries_of_a_pair_may_differ(function, make, looks):
    function(**make())


PER_PAIR = [
    (compat.flash_attn.apply_rotary_emb, lambda: (X, TWICE, TWICE)),
    (compat.flash_attn.apply_rotary_emb_kv_, lambda: (torch.stack((X, X), 2), TWICE, TWICE)),
    (compat.flash_attn.apply_rotary_emb_qkv_, lambda: (torch.stack((X, X, X), 2), TWICE, TWICE)),
    (compat.flash_attn.apply_rotary_emb_qkv_, lambda: (torch.stack((X, X, X), 2), TWICE, TWICE, TWICE.clone())),
    (
        compat.liger.liger_rotary_pos_emb,
        lambda: (X.transpose(1, 2), X.transpose(1, 2), *[torch.cat((TWICE, TWICE), -1)] * 2),
    ),
    (compat.meta_llama.apply_rotary_emb, lambda: (X, X, COMPLEX)),
    (compat.torchtitan.apply_rotary_emb_complex, lambda: (X, X, COMPLEX[None, :, None])),
    (compat.torchtune.forward, lambda: (module(torch.stack((TWICE, TWICE), -1)), X)),
    (compat.vllm.rotary_embedding, lambda: (POSITIONS, X.clone(), None, 64, torch.cat((TWICE, TWICE), -1), True)),
]


@pytest.mark.parametrize("function, make", PER_PAIR, ids=[f"{f.__module__[16:]}.{f.__name__}" for f, _ in PER_PAIR])
def test_entries_of_pairs_may_repeat(function, make, looks):
    function(*make())


@pytest.mark.parametrize("per_pair", [True, False])
@pytest.mark.parametrize("axis", [None, -2], ids=["broadcast", "as apply takes it"])
def test_patched_models(per_pair, axis, looks):
    table = TWICE if per_pair else DIFFERENT
    table = table[:, None] if axis is None else table.repeat(2, 1, 1)
    assert rotate(Rotation(X, table, table, Convention(per_pair=per_pair), axis), "eager") is not None
