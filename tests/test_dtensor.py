"""DTensors: what `apply` returns, and the gradients, beside one process. Four gloo processes run all of it."""

import pytest
import torch

from tests import dtensor_cases
from tests.dtensor_cases import FORMS, OPTIONS, SIZES, Case
from tests.pairwise import pairwise

pytestmark = pytest.mark.devices("cpu")

OTHERS = {
    "form": list(FORMS),
    "layout": ["bshd", "bhsd", "sbhd", "shd"],
    "sizes": list(SIZES),
    "others": ["plain", "replicated", "sharded"],
    "op": ["apply", "norm", "apply_", "norm_", "out"],
    "needs": ["nothing", "x", "all"],
    "dtype": [torch.float64, torch.bfloat16],
    "interleaved": [False, True],
    "option": list(OPTIONS),
}
ONE = ["r", "b", "s", "h", "d", "p"]
TWO = ["rs", "bs", "sb", "ss", "sh", "hs", "bh", "hh", "sd", "ps", "zs", "pp"]


def _cases(mesh, placements):
    found = [Case(mesh=mesh, **case) for case in pairwise({"q": placements, "k": ["same", *placements], **OTHERS})]
    return [_settled(case) for case in found]


def _settled(case):
    case = case._replace(k=case.q if case.k == "same" else case.k)
    if case.op in ("apply_", "norm_"):  # cannot write what is yet to be added up
        case = case._replace(q=case.q.replace("p", "r"), k=case.k.replace("p", "r"))
        if case.option == "other pairing":  # nor in another pairing
            case = case._replace(option="none")
    if case.op == "out":
        case = case._replace(needs="nothing")
    if case.needs == "all" and case.op.startswith("norm") and (case.mesh, case.sizes) != ("2", "uneven"):
        case = case._replace(needs="weights")  # of tables as well, the gradient is many ops of PyTorch: 1 to 7 s a case
    if case.needs in ("all", "weights"):  # bounds of sums in 16 bits would pass anything
        case = case._replace(dtype=torch.float64)
    return case


@pytest.mark.parametrize("mesh, placements", [("2", ONE), ("4", ONE), ("2x2", TWO)])
def test_one_process(ranks, mesh, placements):
    cases = _cases(mesh, placements)
    failed = ranks.run(dtensor_cases.run_all, cases)[0]
    assert not failed, f"of {len(cases)} cases: " + "\n".join(failed)


def test_a_fault_is_found(ranks):
    case = _cases("2", ["s"])[0]._replace(op="apply", sizes="even")
    for form in ("table, offset", "frequencies", "table, cu_seqlens"):
        (failed, *_), *_ = ranks.run(dtensor_cases.run_without_shift, [case._replace(form=form)])
        assert "q differs" in failed
