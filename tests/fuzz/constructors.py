"""Calls of cos_sin, permute_weights and RotaryEmbedding."""

import math

import torch
from calls import Call, Made, decidable, must, mutate
from documented import check_scaling, is_int, is_tensor
from memory import FLOATS, INTEGERS, OTHER_FLOATS, Drawn, any_strides
from rotations import MODES, Rotation, index, same_bits

import rope_ext
from rope_ext import angles, reference

# ---- cos_sin ----


def draw_cos_sin(r, memory):
    dtype = r.choice([torch.float32, torch.float64])
    rank, axes = r.choice([1, 1, 2, 3]), r.choice([1, 2, 3])
    shape = [axes, r.choice([1, 2, 3, 0]), r.choice([1, 2, 5, 17, 0])][3 - rank :]
    inv_freq = Drawn(memory, r, r.choice([*FLOATS, torch.float64]), shape, any_strides(r, shape))
    inv_freq.odd = False
    shape = [r.choice([0, 1, 2, 3]) for _ in range(r.randrange(4))]
    shape = [axes, *shape] if rank == 3 else shape
    reach = r.choice([4096, 10**6, 2**31 - 64, 2**60])
    if r.random() < 0.7:
        positions = index(memory, r, shape, [r.randrange(-reach, reach) for _ in range(math.prod(shape))])
    else:
        positions = Drawn(memory, r, dtype, shape, any_strides(r, shape))
        positions.odd = False
    keywords = {"positions": positions, "inv_freq": inv_freq}
    if r.random() < 0.3:
        keywords["inv_freq"] = Made("rope_ext.angles.revolutions", angles.revolutions, inv_freq, dtype)
    if r.random() < 0.5:
        keywords["attention_scaling"] = r.choice([1, 1.0, 0.5, 1.25, 2])
    if dtype == torch.float64 or r.random() < 0.3:
        keywords["dtype"] = dtype
    for _ in range(r.choice([0, 0, 0, 1, 1, 2])):
        mutate(r, memory, keywords)
    return CosSin("rope_ext.cos_sin", rope_ext.cos_sin, keywords, 2, r.choice(MODES))


class CosSin(Call):
    def check(self):
        a = {"attention_scaling": 1.0, "dtype": torch.float32} | self.keywords
        must(isinstance(a["dtype"], torch.dtype) and a["dtype"] in (torch.float32, torch.float64))
        check_scaling(a["attention_scaling"], a["dtype"])
        inv_freq = a["inv_freq"]
        if isinstance(inv_freq, Made):
            must(inv_freq.arguments[1] == a["dtype"])
            inv_freq = inv_freq.arguments[0]
            decidable(inv_freq.dtype in FLOATS and 1 <= len(inv_freq.shape) <= 3)
        must(is_tensor(inv_freq))
        decidable(inv_freq.dtype not in OTHER_FLOATS)
        must(inv_freq.dtype in FLOATS and 1 <= len(inv_freq.shape) <= 3)
        positions = a["positions"]
        must(is_tensor(positions) and positions.dtype in (*INTEGERS, a["dtype"]))
        must(positions.dtype in INTEGERS or len(positions.shape) <= 3)
        decidable("inference" not in (positions.state, inv_freq.state))
        if len(inv_freq.shape) == 3:
            must(positions.shape and positions.shape[0] == inv_freq.shape[0])
        must(0 not in inv_freq.shape)

    def expected(self, a):
        high, low, per_axis = angles.revolutions(a["inv_freq"], a.get("dtype", torch.float32))
        positions = a["positions"]
        shape = positions.shape[1:] if per_axis else positions.shape
        flat = positions.reshape(len(high), -1) if positions.numel() else positions.new_empty(len(high), 0)
        decidable(bool((high.abs() < 1).all()))
        decidable(
            not any(bool(((t != 0) & (t.abs() < 1e-150)).any()) for t in (flat.double(), high))
        )  # no exact products
        if positions.is_floating_point() and flat.numel() and high.numel():
            decidable(
                flat.double().abs().max() * high.abs().max() * 6.3 < 2.0 ** (24 if high.dtype == torch.float32 else 53)
            )
        decidable(a.get("attention_scaling", 1.0) != 0)  # zeros, whose sign derivatives may change
        cos, sin = reference.cos_sin(flat, high, low, float(a.get("attention_scaling", 1.0)))
        shape = (*shape, *high.shape[1:]) if high.shape[1] != 1 else (*shape, high.shape[2])
        return cos.reshape(shape), sin.reshape(shape)


# ---- permute_weights ----


def draw_permute_weights(r, memory):
    num_heads, head_dim = r.choice([1, 2, 3]), r.choice([2, 4, 6, 8, 10])
    shape = [num_heads * head_dim, 3][: r.choice([1, 2])]
    weight = Drawn(memory, r, r.choice([*FLOATS, *INTEGERS]), shape, any_strides(r, shape))
    keywords = {"weight": weight, "num_heads": num_heads}
    if r.random() < 0.5:
        keywords["rotary_offset"] = r.randrange(0, head_dim - 1, 1)
        keywords["rotary_dim"] = 2 * r.randrange((head_dim - keywords["rotary_offset"]) // 2 + 1)
    keywords["to"] = r.choice(["half", "interleaved"])
    if r.random() < 0.1:
        weight.state = "requires grad" if weight.dtype in FLOATS else None
    for _ in range(r.choice([0, 0, 1, 1, 2])):
        mutate(r, memory, keywords)
    return PermuteWeights("rope_ext.permute_weights", rope_ext.permute_weights, keywords, 2, r.choice(MODES))


class PermuteWeights(Call):
    def check(self):
        a = {"rotary_dim": None, "rotary_offset": 0} | self.keywords
        must(isinstance(a["to"], str) and a["to"] in ("half", "interleaved"))
        must(isinstance(a["weight"], Drawn))
        decidable(a["weight"].state not in ("meta", "sparse"))
        shape = a["weight"].shape
        must(is_int(a["num_heads"]) and is_int(a["rotary_offset"]))
        must(a["rotary_dim"] is None or is_int(a["rotary_dim"]))
        must(a["num_heads"] > 0 and shape and shape[0] % a["num_heads"] == 0)
        decidable(1 <= len(shape) <= 2)
        decidable(a["weight"].dtype in (*FLOATS, *INTEGERS))  # not every dtype has index_select
        head_dim = shape[0] // a["num_heads"]
        must(0 <= a["rotary_offset"] <= head_dim)
        rotary_dim = head_dim - a["rotary_offset"] if a["rotary_dim"] is None else a["rotary_dim"]
        must(rotary_dim % 2 == 0 and 0 <= rotary_dim <= head_dim - a["rotary_offset"])

    def expected(self, a):
        weight, heads = a["weight"], a["num_heads"]
        decidable(weight.device.type == "cpu" and weight.layout == torch.strided)
        head_dim, start = weight.shape[0] // heads, a.get("rotary_offset", 0)
        size = a.get("rotary_dim", None)
        pairs = (head_dim - start if size is None else size) // 2
        moved = [2 * i + j for j in range(2) for i in range(pairs)]  # from pairs that lie together
        if a["to"] == "interleaved":
            moved = [i + j * pairs for i in range(pairs) for j in range(2)]
        order = [*range(start), *(start + i for i in moved), *range(start + 2 * pairs, head_dim)]
        rows = [h * head_dim + i for h in range(heads if order else 0) for i in order]
        return torch.stack([weight[i] for i in rows]) if rows else torch.empty_like(weight)


# ---- RotaryEmbedding ----


def draw_rotary_embedding(r, memory):
    head_dim = r.choice([2, 4, 8, 12, 24])
    rotary_dim = r.choice([None, None, head_dim // 2 // 2 * 2 or 2])
    pairs = (rotary_dim or head_dim) // 2
    schedule = r.choice(list(SCHEDULES))
    keywords = {"head_dim": head_dim}
    keywords |= {"rotary_dim": rotary_dim} if rotary_dim else {}
    keywords |= {"base": r.choice([1e4, 10000, 5e5, 100.0])} if r.random() < 0.7 else {}
    keywords |= {"schedule": schedule} | SCHEDULES[schedule](r, pairs)
    keywords |= {"precision": r.choice(["exact", "hf"])} if r.random() < 0.4 else {}
    if schedule != "axial" and r.random() < 0.15:
        keywords["pair_axis"] = [r.randrange(3) for _ in range(pairs)]
    for _ in range(r.choice([0, 0, 1, 1, 2])):
        mutate(r, memory, keywords)
    if r.random() < 0.4:
        return Embedding("rope_ext.RotaryEmbedding", rope_ext.RotaryEmbedding, keywords)
    use = r.choice(["tables", "call", "apply"])
    made = Made("rope_ext.RotaryEmbedding", _make_or_default, keywords)
    if use == "tables":
        keywords = {"rope": made, "max_position": r.choice([0, 1, 3, 9])}
        keywords |= {"dtype": r.choice(FLOATS)} if r.random() < 0.4 else {}
        keywords |= {"seqlen": r.choice([None, 1, 9, 5000])} if r.random() < 0.4 else {}
        function = rope_ext.RotaryEmbedding.tables
    else:
        seqlen = r.choice([0, 1, 3, 4])
        positions = index(memory, r, [seqlen], [r.randrange(-50, 5000) for _ in range(seqlen)])
        if use == "call":
            keywords = {"rope": made, "positions": positions}
            keywords |= {"dtype": r.choice(FLOATS)} if r.random() < 0.4 else {}
            function = rope_ext.RotaryEmbedding.__call__
        else:
            shape = [2, seqlen, r.choice([1, 2]), head_dim]
            keywords = {"rope": made, "x": Drawn(memory, r, r.choice(FLOATS), shape, any_strides(r, shape))}
            keywords |= {"positions": positions} if r.random() < 0.5 else {}
            keywords |= {"offset": r.choice([0, 3])} if r.random() < 0.5 else {}
            keywords |= {"inverse": True} if r.random() < 0.3 else {}
            function = rope_ext.RotaryEmbedding.apply
        keywords["seqlen"] = r.choice([1, 9, 5000])
    if r.random() < 0.4:
        rope = keywords.pop("rope")
        mutate(r, memory, keywords)
        keywords = {"rope": rope} | keywords
        rows = keywords.get("max_position")
        if isinstance(rows, int) and rows > 10_000:  # tables of any size are made
            keywords["max_position"] = -rows
    return EmbeddingUse(f"rope_ext.RotaryEmbedding.{use.replace('call', '__call__')}", function, keywords, 2)


def _make_or_default(keywords):
    """Its errors are another call's."""
    try:
        return rope_ext.RotaryEmbedding(**keywords)
    except Exception:
        return rope_ext.RotaryEmbedding(8)


SCHEDULES = {
    "default": lambda r, pairs: {},
    "linear": lambda r, pairs: {"factor": r.choice([1, 2, 4.0])},
    "ntk": lambda r, pairs: {"alpha": r.choice([1.5, 1000])},
    "dynamic_ntk": lambda r, pairs: {"factor": 2.0, "max_position": 512},
    "yarn": lambda r, pairs: {"factor": r.choice([4.0, 40]), "original_max_position": 64, "truncate": r.random() < 0.5},
    "longrope": lambda r, pairs: {
        "short_factor": [1.0] * pairs,
        "long_factor": [2.0 + i for i in range(pairs)],
        "original_max_position": 64,
        "max_position": 256,
    },
    "llama3": lambda r, pairs: {"factor": 8.0, "original_max_position": 64},
    "proportional": lambda r, pairs: {"partial_rotary_factor": r.choice([0.25, 0.5, 1.0])},
    "axial": lambda r, pairs: {"axes": r.choice([1, 2]), "alternate": r.random() < 0.5},
    "warped": lambda r, pairs: {"factor": 2.0},
}


class Embedding(Call):
    """A value whose frequencies are finite; base ** (-2 i / rotary_dim) for the schedule "default"."""

    def after(self, arguments, result, shadow):
        for seqlen in (None, 1, 10**6):
            found = result.frequencies(seqlen)
            if not (found.inv_freq.isfinite().all() and math.isfinite(found.attention_scaling)):
                return f"frequencies({seqlen}) are {found}"
        if result.schedule == "default" and result.precision == "exact" and result.pair_axis is None:
            for i, got in enumerate(found.inv_freq.tolist()):
                expected = result.base ** (-2 * i / result.rotary_dim)
                if abs(got - expected) > 1e-12 * expected:
                    return f"inv_freq[{i}] is {got}, not {expected}"
        again = eval(repr(result), {"RotaryEmbedding": rope_ext.RotaryEmbedding})
        return None if again == result else f"the repr of {result} makes {again}"


class EmbeddingUse(Call):
    """cos and sin of float64 angles, rounded once; and apply, of the tables of the reference."""

    def after(self, arguments, result, shadow):
        a = arguments
        rope, seqlen = a["rope"], a.get("seqlen")
        if self.function is rope_ext.RotaryEmbedding.apply:
            if rope.precision != "exact" or not isinstance(a["x"], torch.Tensor):
                return None
            names = ("layout", "interleaved", "inverse", "positions", "offset")
            keywords = {name: a[name] for name in names if name in a}
            found = rope.frequencies(seqlen)
            keywords |= {"inv_freq": found.inv_freq, "attention_scaling": found.attention_scaling}
            call = Rotation("", rope_ext.apply, {"x": a["x"], "rotary_dim": rope.rotary_dim, **keywords})
            expected = call.expected(call.keywords)
            return None if same_bits(result, expected) else f"returned {result}, not {expected}"
        if rope.precision != "exact":
            return None
        if self.function is rope_ext.RotaryEmbedding.tables:
            positions = torch.arange(a["max_position"])
            seqlen = a["max_position"] if seqlen is None else seqlen
        else:
            positions = a["positions"]
            if seqlen is None and positions.numel():
                seqlen = int(positions.max()) + 1
        inv_freq, scaling = rope.frequencies(seqlen)
        if inv_freq.dim() == 3:
            if positions.dim() == 3:
                return None
            inv_freq = inv_freq.sum(0)[0]
        angle = positions.double()[..., None] * inv_freq
        for got, expected in zip(result, (angle.cos() * scaling, angle.sin() * scaling)):
            bound = abs(scaling) * (torch.finfo(got.dtype).eps + 2.0**-52 * angle.abs() + 1e-15)
            if got.shape != expected.shape or not ((got.double() - expected).abs() <= bound).all():
                return f"returned {got}, not {expected}"
        return None
