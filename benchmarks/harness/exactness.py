"""The error of each result against the exact one, and its bound."""

import math
from dataclasses import asdict, dataclass

import torch

from benchmarks.harness.cases import DTYPES, EPS

MIN_CORRECT = 0.999  # required share of correctly rounded 16-bit results of ours; float32 tables cause the others

MIN_CORRECT_OF_NORM = 0.995  # the same with a norm, whose float32 sums over a head round about fifty times more


@dataclass
class Expected:
    """One expected result of a case, the same for all variants."""

    exact: torch.Tensor  # float64
    rounded: torch.Tensor  # `exact`, rounded once to the dtype of x
    largest: float  # max|x|; with a norm, the maximum of the normalized x, or of the terms that its gradient adds up


@dataclass
class Verdict:
    max_error: float
    error_bound: float
    correctly_rounded: float | None  # share of results; None for float32, where tables and products are rounded too
    wrong: bool

    def as_dict(self):
        return asdict(self)


def expect(case):
    """The expected results of every variant: q, k and, with derivatives, their gradients."""
    if case.norm:
        return _expect_normalized(case)
    found = []
    for i, x in enumerate((*case.inputs, *case.grads)):
        y = exact(x, case.tables.angles, case.interleaved, inverse=i >= 2)
        found.append(Expected(y, rounded_once(y, x.dtype), x.abs().max().item()))
    return found


def _expect_normalized(case):
    results, gradients = [], []
    for i, (x, weight) in enumerate(zip(case.inputs, case.weights)):
        leaf, w = x.double().requires_grad_(), weight.double()
        r = (leaf.square().mean(-1, keepdim=True) + EPS).rsqrt()
        n = leaf * r * w
        y = exact(n, case.tables.angles, case.interleaved)
        results.append(Expected(y.detach(), rounded_once(y.detach(), x.dtype), n.abs().max().item()))
        if case.backward:
            (grad,) = torch.autograd.grad(y, leaf, case.grads[i].double())
            u = exact(case.grads[i], case.tables.angles, case.interleaved, inverse=True) * w
            wide, factor = leaf.detach(), r.detach()
            terms = (u.abs() + wide.abs() * (u * wide).abs().mean(-1, keepdim=True) * factor.square()) * factor
            gradients.append(Expected(grad, rounded_once(grad, x.dtype), terms.max().item()))
    return results + gradients


def copied(case):
    """The expected results of the yardstick."""
    return [Expected(x.double(), x, 0.0) for x in (*case.inputs, *case.grads)]


def check(variant, results, expected, case):
    """The verdict on the results of a variant. A wrong result of rope_ext or PyTorch ends the program."""
    dtype, errors, right, elements = DTYPES[case.dtype], [], 0, 0
    for y, wanted in zip(results, expected, strict=True):
        error = (y.detach() - wanted.exact).abs_().max().item()
        errors.append((error, error_bound(variant, dtype, wanted.largest, case)))
        right += (y == wanted.rounded).sum().item()
        elements += y.numel()
    wrong = not all(error <= bound for error, bound in errors)  # NaN compares false
    share = None if dtype == torch.float32 else right / elements
    worst = max(errors, key=lambda e: math.inf if math.isnan(e[0]) else e[0] / max(e[1], 1e-300))
    verdict = Verdict(*worst, share, wrong)
    minimum = MIN_CORRECT_OF_NORM if case.norm else MIN_CORRECT
    coarse = variant.roundings == 1 and share is not None and share < minimum
    if (wrong and not variant.foreign) or (variant.ours and coarse):
        raise SystemExit(f"{variant.name}: {case}: wrong: {verdict}; (error, bound) of q, k and gradients: {errors}")
    return verdict


def exact(x, angles, interleaved, inverse=False):
    """The rotation in float64 by complex multiplication, independent of rope_ext; inverse: for gradients."""
    unit = torch.polar(torch.ones_like(angles), -angles if inverse else angles)
    if interleaved:
        y = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous()) * unit
        return torch.view_as_real(y).flatten(-2)
    y = torch.complex(*x.double().chunk(2, dim=-1)) * unit
    return torch.cat((y.real, y.imag), dim=-1)


def rounded_once(x, dtype):
    """float64 x, rounded once to dtype. x.to(dtype) goes through float32 and misrounds 1 of 10,000 float16 results.

    Veltkamp splitting: the upper bits of x, rounded to nearest. (Below float16's normal range .to() rounds again.)
    """
    if dtype == torch.float32:
        return x.to(dtype)
    scaled = x * (2.0**53 * torch.finfo(dtype).eps / 2 + 1)
    return (scaled - (scaled - x)).to(dtype)


def error_bound(variant, dtype, largest, case):
    """The largest permitted distance from the exact result. dtype: that of x; largest: max|x|.

    A channel is x1 cos - x2 sin. Table, products and sum are rounded once each, by a factor of at most 1 + u. For a
    pair of norm r the error is at most r ((1 + u)^3 - 1), since |x1 cos| + |x2 sin| <= r <= sqrt(2) max|x|. In bfloat16
    and float16, where u is 2^-8 and 2^-11, `roundings` to the dtype of x are added:

    * rope_ext, complex and the pairs formula compute in float32 and round the result: 1;
    * implementations whose tables are stored in the dtype of x: 1 more;
    * the formulas of Hugging Face store table, products and sum in the dtype of x: 3 (compiled: up to 3). They may be
      3 times as far off; that is a property of the formula, not an error.

    Angles computed in float32 come from a frequency, its reciprocal and a product, each rounded: the pair is rotated
    too far by up to 3 u of the largest angle. With a norm, sums in float32 have up to head_dim roundings, and a formula
    that rounds more than once has four more, before and after the weight in each direction. The last term is for
    float16 below its normal range, where two table entries or products are off by a constant.
    """
    if variant.name == "copy":
        return 0.0
    of_x, single = torch.finfo(dtype), torch.finfo(torch.float32)
    in_x = variant.roundings + 4 * (case.norm and variant.roundings > 1)
    in_single = 3 + (case.shape.head_dim + 8) * case.norm
    coarse = 1.0 if dtype == torch.float32 else (1 + of_x.eps / 2) ** in_x
    relative = coarse * (1 + single.eps / 2) ** in_single - 1
    if variant.float32_angles:
        relative += 3 * single.eps / 2 * (case.shape.first_position + case.shape.seqlen)
    return math.sqrt(2) * largest * relative + 2 * (1 + largest) * of_x.smallest_normal * of_x.eps / 2
