"""Calls of apply and apply_: how they are drawn, and what they should give."""

import inspect

import torch
from calls import Made, decidable, drawn_in, mutate
from documented import AXES, DEFAULTS, Documented
from memory import FLOATS, INTEGERS, Drawn, any_strides

import rope_ext
from rope_ext import _reference_norm, angles, reference

_HAS_PER_CHANNEL = "per_channel" in inspect.signature(rope_ext.apply).parameters
HEAD_DIMS = [2, 4, 6, 8, 10, 16, 18, 34, 40, 66]
MODES = [None] * 8 + ["no_grad", "inference_mode"]


def draw(r, memory, target):
    """A Call of target: "apply", "apply_" or "out"."""
    layout = r.choice(list(AXES))
    batch = r.choice([1, 2, 2, 3, 0]) if "b" in layout else 1
    seqlen = r.choice([1, 2, 3, 4, 5, 5, 0])
    dtype = r.choice(FLOATS)
    heads = [r.choice([1, 1, 2, 3, 0]) for _ in range(r.choice([1, 1, 2, 2, 3, 8]))]
    if r.random() < 0.5:
        heads = heads[:1] * len(heads)
    vast = r.random() < 0.002  # no elements, and a size that no loop may count to
    if vast:
        batch, seqlen, number = r.choice([(1, 2**40, 0), (1, 0, 2**40), *([(2**40, 2, 0)] if "b" in layout else [])])
        heads = [number] * len(heads)
    head_dim = r.choice(HEAD_DIMS)
    rotary_dim, rotary_offset = None, 0
    if r.random() < 0.5:
        rotary_offset = r.choice([0, 0, 1, 2, 3, head_dim // 2])
        rotary_offset = min(rotary_offset, head_dim - 2)
        rotary_dim = 2 * r.randrange(1, (head_dim - rotary_offset) // 2 + 1)
        if r.random() < 0.3 and (head_dim - rotary_offset) % 2 == 0:
            rotary_dim = None
    pairs = (head_dim - rotary_offset if rotary_dim is None else rotary_dim) // 2
    differ = rotary_dim is not None and r.random() < 0.3

    def tensor_x():
        sizes = {"b": batch, "s": seqlen, "h": heads[len(x)], "d": head_dim + (r.randrange(3) if differ else 0)}
        shape = [sizes[a] for a in AXES[layout]]
        return Drawn(memory, r, dtype, shape, any_strides(r, shape, may_expand=target != "apply_"))

    x = []
    for _ in heads:
        x.append(tensor_x())
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    keywords = {"x": x[0] if len(x) == 1 and r.random() < 0.7 else r.choice([list, tuple])(x)}
    options = {}
    if vast or r.random() < 0.85:
        options |= tables(r, memory, layout, batch, seqlen, heads, pairs, r.choice([dtype, arithmetic]), vast)
    else:
        options |= frequencies(r, memory, layout, batch, seqlen, heads, pairs, arithmetic)
    keywords |= {name: options.pop(name) for name in ("cos", "sin") if name in options}
    positional = len(keywords)
    keywords |= {"layout": layout} if layout != "bshd" or r.random() < 0.2 else {}
    keywords |= options
    for name, values in (("interleaved", (False, True)), ("inverse", (False, True)), ("rounding", ("once", "eager"))):
        if r.random() < 0.5:
            keywords[name] = r.choice(values)
    if rotary_dim is not None:
        keywords["rotary_dim"] = rotary_dim
    if rotary_offset or r.random() < 0.1:
        keywords["rotary_offset"] = rotary_offset
    if target != "apply_" and r.random() < 0.3:
        keywords["out_interleaved"] = r.choice([None, False, True])
    if _HAS_PER_CHANNEL and r.random() < 0.3:
        keywords["per_channel"] = r.choice([None, True, False])
        if "cos" in keywords and r.random() < 0.8:
            keywords["per_channel"] = keywords["cos"].shape[-1] == 2 * pairs
    if target == "out":
        keywords["out"] = keywords["x"]
        if r.random() < 0.8:
            listed = [Drawn(memory, r, dtype, t.shape, any_strides(r, t.shape, may_expand=False)) for t in x]
            keywords["out"] = listed[0] if isinstance(keywords["x"], Drawn) else r.choice([list, tuple])(listed)
    if r.random() < 0.2:
        for t in r.sample(x, r.randrange(1, len(x) + 1)):
            t.state = "not a leaf" if target == "apply_" else r.choice(["requires grad", "not a leaf"])
    if r.random() < 0.1 and not vast:
        for t in drawn_in([keywords.get("cos"), keywords.get("sin")]):
            t.state = "requires grad"
    if not vast and r.random() < 0.4:
        keywords |= norms(r, memory, x, isinstance(keywords["x"], Drawn))
    for _ in range(0 if vast else r.choice([0, 0, 0, 1, 1, 2])):
        mutate(r, memory, keywords)
    if len(x) > 1 and r.random() < 0.02:
        keywords["x"] = r.choice([list, tuple])(r.choice(x) for _ in x)
    name = "rope_ext.apply_" if target == "apply_" else "rope_ext.apply"
    function = rope_ext.apply_ if target == "apply_" else rope_ext.apply
    positional = min(positional, list(keywords).index("layout") if "layout" in keywords else positional)
    return Rotation(name, function, keywords, positional, r.choice(MODES))


def norms(r, memory, x, is_one):
    """norm and eps. is_one: x is no list."""
    weights = []
    for t in x:
        shape = t.shape[-1:]
        weight = Drawn(memory, r, r.choice([t.dtype, *FLOATS]), shape, any_strides(r, shape))
        if r.random() < 0.2:
            weight.state = r.choice(["requires grad", "not a leaf", "parameter", "negative bit"])
        weights.append(weight)
    widths = {t.shape[-1] for t in x}
    if is_one or (len(widths) == 1 and r.random() < 0.4):
        norm = weights[0]
    else:
        norm = r.choice([list, tuple])(None if r.random() < 0.2 else weight for weight in weights)
    return {"norm": norm, "eps": r.choice([0.0, 0, 1e-6, 1e-5, 0.5, 3])}


def tables(r, memory, layout, batch, seqlen, heads, pairs, dtype, vast):
    """cos, sin and the arguments that choose their rows. vast: each is one row, expanded."""
    width = pairs * r.choice([1, 2])
    if vast:
        cos, sin = (Drawn(memory, r, dtype, [1, seqlen, width], [0, 0, 1]) for _ in range(2))
        return {"cos": cos, "sin": sin}
    kind = r.choice(["rows", "offset", "offsets", "positions", "cu_seqlens", "token", "head"])
    rows = max(seqlen, 1) + r.randrange(6)
    found = {}
    if kind == "token":
        shape = [r.choice([1, batch]), seqlen, width]
    elif kind == "head":
        axes = layout if len(layout) == 4 else "bshd"
        sizes = {"b": r.choice([1, batch]), "s": seqlen, "h": heads[0] if len(set(heads)) == 1 else 1, "d": width}
        if r.random() < 0.2:
            sizes["h"] = 1
        shape = [sizes[a] for a in axes]
    else:
        shape = [rows, width]
        found |= lookup(r, memory, layout, batch, seqlen, kind, (0, rows))
    found["cos"] = Drawn(memory, r, dtype, shape, any_strides(r, shape))
    found["sin"] = Drawn(memory, r, dtype, shape, found["cos"].strides if r.random() < 0.5 else any_strides(r, shape))
    return found


def frequencies(r, memory, layout, batch, seqlen, heads, pairs, arithmetic):
    """inv_freq, as a tensor or as the result of `angles.revolutions`, and positions of any size."""
    per_head = heads[0] if len(set(heads)) == 1 else 1
    rank = r.choice([1, 1, 2, 3])
    axes = r.choice([1, 2, 3])
    shape = [axes, r.choice([1, per_head]), pairs][3 - rank :]
    source = r.choice([*FLOATS, torch.float64, torch.float32])
    inv_freq = Drawn(memory, r, source, shape, any_strides(r, shape))
    inv_freq.odd = False
    found = {"inv_freq": inv_freq}
    if r.random() < 0.3:
        found["inv_freq"] = Made("rope_ext.angles.revolutions", angles.revolutions, inv_freq, arithmetic)
    kind = r.choice(["rows", "offset", "offsets", "positions", "positions", "fractions", "axes", "cu_seqlens"])
    reach = r.choice([4096, 10**6, 2**31 - 64, 2**60])
    if kind == "fractions":
        shape = r.choice([[seqlen], [batch, seqlen], [1, seqlen]] if "b" in layout else [[seqlen]])
        found["positions"] = Drawn(memory, r, arithmetic, shape, any_strides(r, shape))
        found["positions"].odd = False
        if r.random() < 0.3:
            found["offset"] = r.choice([3, -2])
        if r.random() < 0.1:
            found["positions"].state = "requires grad"
    elif kind == "axes" and rank == 3:
        shape = [axes, r.choice([1, batch]), seqlen]
        values = [r.randrange(-reach, reach) for _ in range(axes * shape[1] * seqlen)]
        found["positions"] = index(memory, r, shape, values)
    else:
        found |= lookup(r, memory, layout, batch, seqlen, "positions" if kind == "axes" else kind, (-reach, reach))
    if r.random() < 0.6:
        found["attention_scaling"] = r.choice([1, 1.0, 0.5, 1.25, 2])
    return found


def lookup(r, memory, layout, batch, seqlen, kind, rows):
    """positions, offset and cu_seqlens that lead to rows of the table, and seldom beyond it."""
    low, high = rows
    if r.random() < 0.04:
        high += 1
    last = max(low + 1, high - max(seqlen, 1) + 1)
    if kind == "offset":
        return {"offset": r.randrange(low, last)}
    if kind == "offsets":
        shape = r.choice([[batch], [batch], [1], []])
        return {
            "offset": index(memory, r, shape, [r.randrange(low, last) for _ in range(batch if shape == [batch] else 1)])
        }
    if kind == "positions":
        shape = [seqlen]
        if "b" in layout and r.random() < 0.7:
            shape = r.choice([[batch, seqlen], [1, seqlen]])
        count = seqlen * (shape[0] if len(shape) == 2 else 1)
        offset = r.choice([0, 0, 1]) if high - low > 1 else 0
        values = [r.randrange(low, high - offset) for _ in range(count)]
        if count and r.random() < 0.05:
            values[r.randrange(count)] = r.choice([-1, high, 2**31 - 1, -(2**31), 2**62, -(2**63), 2**63 - 1])
        found = {"positions": index(memory, r, shape, values)}
        if r.random() < 0.3:
            found["offset"] = offset
        return found
    if kind == "cu_seqlens" and layout == "thd":
        values = sorted(r.randrange(seqlen + 1) for _ in range(r.randrange(4)))
        if values and r.random() < 0.1:
            values[r.randrange(len(values))] = r.choice([-1, seqlen + 1, 2**31 - 1, -(2**31), 0])
        values = [0 if r.random() < 0.98 else r.choice([1, -1]), *values]
        found = {"cu_seqlens": index(memory, r, [len(values)], values)}
        if r.random() < 0.3:
            one = r.randrange(low, last)
            found["offset"] = one if r.random() < 0.5 else index(memory, r, r.choice([[1], []]), [one])
        return found
    return {}


def index(memory, r, shape, values, dtype=None):
    if dtype is None:
        fits = all(-(2**31) <= v < 2**31 for v in values)
        dtype = r.choice(INTEGERS) if fits else torch.int64
    strides = any_strides(r, shape, may_expand=False)
    if len(shape) == 2 and shape[0] and r.random() < 0.1:  # the same for all sequences
        values, strides = values[: shape[1]] * shape[0], [0, 1]
    return Drawn(memory, r, dtype, shape, strides, values)


# ---- their expected results ----


class Rotation(Documented):
    def expected(self, a):
        a = DEFAULTS | a
        self.numbers_of(a)
        y = self.rotate(a["x"])
        if self.function is rope_ext.apply and a["out"] is None:
            return y
        to = a["x"] if self.function is rope_ext.apply_ else a["out"]
        for t, value in zip(_listed(to), _listed(y)):
            t.copy_(value)
        return to

    def numbers_of(self, a):
        """Keep what the reference needs: cos, sin, options, and which tokens are rotated."""
        names = ("layout", "interleaved", "rotary_dim", "rotary_offset", "inverse", "rounding", "out_interleaved")
        self.options, self.rotated = {name: a[name] for name in names}, None
        self.tables = a["cos"], a["sin"]
        self.eps = None if a["eps"] is None else float(a["eps"])
        self.weights = each_weight(a["norm"], a["x"])
        self.before = [t.clone() for t in _listed(a["x"])]
        if a["cu_seqlens"] is not None:
            self.rotated = (torch.arange(self.before[0].shape[0]) < a["cu_seqlens"][-1])[:, None, None]
        if a["inv_freq"] is None:
            self.options |= {name: a[name] for name in ("positions", "offset", "cu_seqlens")}
            return
        x = _listed(a["x"])[0]
        axes = AXES[a["layout"]]
        batch, seqlen = x.shape[axes.index("b")] if "b" in axes else 1, x.shape[axes.index("s")]
        high, low, _ = angles.revolutions(a["inv_freq"], torch.float64 if x.dtype == torch.float64 else torch.float32)
        at, offset = a["positions"], a["offset"]
        if a["cu_seqlens"] is not None:
            at = reference.table_rows(1, seqlen, None, 0, a["cu_seqlens"])
        at = torch.arange(seqlen) if at is None else at if at.is_floating_point() else at.long()
        at = at + (offset.reshape(-1, 1) if isinstance(offset, torch.Tensor) else offset)
        at = at.expand(len(high), batch, seqlen).flatten(1)
        if at.numel() and high.numel():
            bound = 2.0 ** (24 if high.dtype == torch.float32 else 53)
            decidable((at.double().abs().max() if at.is_floating_point() else 1) * high.abs().max() * 6.3 < bound)
            decidable(high.abs().max() < 1)
        decidable(a["attention_scaling"] != 0)  # zeros, whose sign derivatives may change
        cos, sin = (
            t.reshape(batch, seqlen, -1 if t.numel() else high.shape[1], high.shape[2])
            for t in reference.cos_sin(at, high, low, float(a["attention_scaling"]))
        )
        order = a["layout"] if "b" in axes else "bshd"
        self.tables = tuple(t.permute(*("bshd".index(axis) for axis in order)) for t in (cos, sin))

    def rotate(self, x, transposed=False):
        """The reference; of tensors without elements nothing."""
        options = dict(self.options)
        if transposed and options["out_interleaved"] is not None:
            options |= {"interleaved": options["out_interleaved"], "out_interleaved": options["interleaved"]}

        def one(t, weight):
            if not t.numel():
                return torch.empty_like(t)
            norm = {} if transposed or weight is None else {"norm": weight, "eps": self.eps}
            y = reference.apply(t, *self.tables, transposed=transposed, **options, **norm)
            return y if self.rotated is None else torch.where(self.rotated, y, t)

        return one(x, self.weights[0]) if isinstance(x, torch.Tensor) else type(x)(map(one, x, self.weights))

    def gradients(self, x, weight, grad):
        """Those of x and of its weight, given that of the result."""
        dtype = x.dtype
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        if weight is None or not x.numel():
            return self.rotate([grad], transposed=True)[0], None if weight is None else torch.zeros_like(weight)
        g = self.rotate([grad if self.options["rounding"] == "eager" else grad.to(wide)], transposed=True)[0].to(wide)
        x4, g4 = x.to(wide), g
        if self.rotated is not None:
            x4, g4 = torch.where(self.rotated, x4, 1), torch.where(self.rotated, g4, 0)
        x4, g4 = (reference.as_bshd(t, self.options["layout"]) for t in (x4, g4))
        of_x, of_weight = _reference_norm.norm_gradients(x4.flatten(0, 1), weight, self.eps, g4.flatten(0, 1))
        of_x = reference.from_bshd(of_x.unflatten(0, x4.shape[:2]), self.options["layout"]).to(dtype)
        return of_x if self.rotated is None else torch.where(self.rotated, of_x, grad), of_weight.to(weight.dtype)

    def written(self):
        return drawn_in(self.keywords["x"] if self.function is rope_ext.apply_ else self.keywords.get("out"))

    def after(self, arguments, result, shadow):
        if self.keywords.get("out") is not None or self.function is rope_ext.apply_:
            if result is not (arguments["out"] if self.function is rope_ext.apply else arguments["x"]):
                return "did not return what it wrote"
        else:
            for y, t in zip(_listed(result), _listed(arguments["x"])):
                is_dense = 0 not in t.stride()  # PyTorch's ops, which composed derivatives use, choose others
                if t.device.type == "cpu" and is_dense and strides_of(y) != strides_of(torch.empty_like(t)):
                    return f"strides {y.stride()}, those of empty_like are {torch.empty_like(t).stride()}"
        return self.derivative(arguments, result, shadow)

    def derivative(self, arguments, result, shadow):
        """The gradients of x and of the weights of norm, bit for bit."""
        drawn, given = drawn_in(self.keywords["x"]), _listed(arguments["x"])
        weights = each_weight(self.keywords.get("norm"), drawn)
        given_weights = each_weight(arguments.get("norm"), drawn)
        tables = [self.keywords.get(name) for name in ("cos", "sin", "inv_freq", "positions")]
        if len({id(d) for d in drawn}) < len(drawn) or self.mode:
            return None
        if any(weights) and any(map(needs_gradient, drawn_in(tables))):
            return None  # PyTorch differentiates the norm there, and rounds elsewhere
        need = [needs_gradient(d) or needs_gradient(w) for d, w in zip(drawn, weights)]
        if not any(need):
            return None
        results = [y for y, n in zip(_listed(result), need) if n]
        if not all(y.requires_grad for y in results):
            return "x or norm requires grad and the result does not"
        grads = [torch.ones_like(y) if i % 2 else y.detach().clone() for i, y in enumerate(results)]
        expected, leaves = {}, {}
        chosen = [
            every for *every, n in zip(drawn, given, weights, given_weights, self.before, self.weights, need) if n
        ]
        for (d, t, w, weight, before, plain), g in zip(chosen, grads):
            for key, made, of in zip((d, w), (t, weight), self.gradients(before, plain, g)):
                if needs_gradient(key):
                    expected[id(key)] = expected[id(key)] + of if id(key) in expected else of
                    leaves[id(key)] = key.leaf if key.state == "not a leaf" else made
        got = torch.autograd.grad(results, list(leaves.values()), grads)
        for a, b in zip(got, expected.values()):
            # Autograd may add zeros to it, which turn -0.0 into 0.0.
            if not same_bits(a + 0.0, b + 0.0):
                return f"gradient {a}, not {b}"
        return None


def needs_gradient(t):
    return t is not None and t.state in ("requires grad", "not a leaf", "parameter")


def each_weight(norm, x):
    """One weight or None for each tensor of x."""
    count = len(x) if isinstance(x, (list, tuple)) else 1
    return list(norm) if isinstance(norm, (list, tuple)) else [norm] * count


def strides_of(t):
    """The strides along axes of several elements."""
    return [s for n, s in zip(t.shape, t.stride()) if n > 1] if t.numel() else []


def same_bits(a, b):
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype in FLOATS:
        return bool(((a == b) & (a.signbit() == b.signbit()) | (a.isnan() & b.isnan())).all())
    return not a.numel() or torch.equal(*(t.contiguous().flatten().view(torch.uint8) for t in (a, b)))


def _listed(x):
    return [x] if isinstance(x, torch.Tensor) else list(x)
