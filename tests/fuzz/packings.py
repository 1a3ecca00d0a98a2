"""Calls of apply_qkv and apply_qkv_: how they are drawn, and what they should give: `apply` to the parts of qkv."""

import copy

import torch
from calls import decidable, drawn_in, must, mutate
from documented import AXES, DEFAULTS, Documented, is_int, is_tensor
from memory import FLOATS, Drawn, any_strides
from rotations import HEAD_DIMS, MODES, Rotation, each_weight, frequencies, needs_gradient, norms, same_bits, tables

import rope_ext

LEAD = {"bshd": 2, "sbhd": 2, "thd": 1, "shd": 1}  # the axes of the tokens


def draw(r, memory):
    layout, grouped = r.choice(list(LEAD)), r.random() < 0.5
    sizes = {"b": r.choice([1, 2, 3, 0]) if "b" in layout else 1, "s": r.choice([1, 2, 3, 5, 0])}
    dtype, head_dim = r.choice(FLOATS), r.choice(HEAD_DIMS)
    kv, group = r.choice([1, 2, 3]), r.choice([1, 1, 2, 4, 9])
    q = kv * group
    if head_dim * (q + 2 * kv) * sizes["b"] * sizes["s"] > 2500:
        head_dim = 4
    forms = [[(q + 2 * kv) * head_dim], [q + 2 * kv, head_dim]]
    if grouped or group == 1:
        forms.append([kv, group + 2, head_dim] if grouped else [3, q, head_dim])
    shape = [*(sizes[axis] for axis in AXES[layout][: LEAD[layout]]), *r.choice(forms)]
    in_place = r.random() < 0.3
    qkv = Drawn(memory, r, dtype, shape, any_strides(r, shape, may_expand=not in_place))
    if r.random() < 0.4:
        qkv.state = "not a leaf" if in_place else r.choice(["requires grad", "not a leaf"])
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    heads = [q, kv]
    if r.random() < 0.8:
        options = tables(r, memory, layout, *sizes.values(), heads, head_dim // 2, r.choice([dtype, arithmetic]), False)
    else:
        options = frequencies(r, memory, layout, *sizes.values(), heads, head_dim // 2, arithmetic)
    keywords = {"qkv": qkv} | {name: options.pop(name) for name in ("cos", "sin") if name in options}
    positional = len(keywords)
    keywords |= {"num_heads": q, "layout": layout, "grouped": grouped, **options}
    if group > 1 or r.random() < 0.5:
        keywords["num_kv_heads"] = kv
    for name, values in (("interleaved", (False, True)), ("inverse", (False, True)), ("rounding", ("once", "eager"))):
        if r.random() < 0.5:
            keywords[name] = r.choice(values)
    if not in_place and r.random() < 0.3:
        keywords["out_interleaved"] = r.choice([None, False, True])
    if r.random() < 0.6:
        shapes = [copy.copy(qkv), copy.copy(qkv)]
        for t in shapes:
            t.shape = [head_dim]
        keywords |= norms(r, memory, shapes, False)
    for _ in range(r.choice([0, 0, 0, 1])):
        mutate(r, memory, keywords)
    name = "apply_qkv_" if in_place else "apply_qkv"
    return Packed(f"rope_ext.{name}", getattr(rope_ext, name), keywords, positional, r.choice(MODES))


class Packed(Rotation):
    """keywords: as of Rotation, but for qkv in place of x."""

    def check(self):
        a = self.keywords
        qkv, layout, grouped = a["qkv"], a["layout"], a["grouped"]
        must(is_tensor(qkv))
        must(isinstance(layout, str) and layout in LEAD and type(grouped) is bool)
        q, kv = a["num_heads"], a.get("num_kv_heads")
        must(is_int(q) and q >= 1 and (kv is None or (is_int(kv) and kv >= 1)))
        kv = q if kv is None else kv
        must(q % kv == 0)
        lead, shape = qkv.shape[: LEAD[layout]], qkv.shape[LEAD[layout] :]
        must(len(shape) in (1, 2, 3))
        if len(shape) == 1:
            must(shape[0] % (q + 2 * kv) == 0)
            shape = [q + 2 * kv, shape[0] // (q + 2 * kv)]
        must(len(shape) != 2 or shape[0] == q + 2 * kv)
        must(len(shape) != 3 or shape[:2] == ([kv, q // kv + 2] if grouped else [3, q]))
        must(len(shape) != 3 or grouped or q == kv)
        decidable(not isinstance(a.get("norm"), (list, tuple)) or len(a["norm"]) == 2)
        parts = []
        for heads in (q, kv):
            parts.append(copy.copy(qkv))
            parts[-1].shape = [*lead, heads, shape[-1]]
        cos = a.get("cos")
        must(q == kv or not isinstance(cos, Drawn) or len(cos.shape) < 4 or cos.shape[-2] == 1)
        others = {name: value for name, value in a.items() if name not in _OWN}
        Documented(self.name, rope_ext.apply, {"x": parts, "layout": layout, **others}, mode=self.mode).check()
        decidable(self.function is rope_ext.apply_qkv)

    def views(self, qkv):
        """q, k and v of qkv; a grouped q has the axes of the groups and of the heads of a group."""
        a = self.keywords
        q, grouped = a["num_heads"], a["grouped"]
        kv = a.get("num_kv_heads") or q
        axis = LEAD[a["layout"]]
        if qkv.dim() == axis + 1:
            qkv = qkv.unflatten(-1, (q + 2 * kv, qkv.shape[-1] // (q + 2 * kv)))
        if grouped:
            qkv = qkv.unflatten(axis, (kv, q // kv + 2)) if qkv.dim() == axis + 2 else qkv
            return qkv[..., :-2, :], qkv[..., -2, :], qkv[..., -1, :]
        return qkv.unbind(axis) if qkv.dim() == axis + 3 else qkv.split((q, kv, kv), axis)

    def expected(self, a):
        q, k, v = self.views(a["qkv"])
        x = q.flatten(-3, -2) if a["grouped"] else q, k
        self.numbers_of(DEFAULTS | {name: value for name, value in a.items() if name not in _OWN} | {"x": x})
        rotated = self.rotate(x)
        if self.function is rope_ext.apply_qkv:
            return *rotated, v
        for t, value in zip((q, k), rotated):
            t.copy_(value.reshape(t.shape))
        return q, k, v

    def written(self):
        return [self.keywords["qkv"]] if self.function is rope_ext.apply_qkv_ else []

    def after(self, arguments, result, shadow):
        """The gradients of qkv and of the weights, bit for bit."""
        qkv, tensor = self.keywords["qkv"], arguments["qkv"]
        tables = [self.keywords.get(name) for name in ("cos", "sin", "inv_freq", "positions")]
        weights = each_weight(self.keywords.get("norm"), result[:2])
        if self.mode or self.function is rope_ext.apply_qkv_ or any(map(needs_gradient, drawn_in([*tables, *weights]))):
            return None
        if not needs_gradient(qkv):
            return None
        if not all(y.requires_grad for y in result):
            return "qkv requires grad and the result does not"
        grads = [torch.ones_like(result[0]), *(y.detach().clone() for y in result[1:])]
        leaf = qkv.leaf if qkv.state == "not a leaf" else tensor
        (got,) = torch.autograd.grad(result, [leaf], grads)
        expected = torch.empty(tensor.shape, dtype=tensor.dtype)
        q, k, v = self.views(expected)
        for t, x, weight, g in zip((q, k), self.before, self.weights, grads):
            t.copy_(self.gradients(x, weight, g)[0].reshape(t.shape))
        v.copy_(grads[2])
        # Autograd may add zeros to it, which turn -0.0 into 0.0.
        return None if same_bits(got + 0.0, expected + 0.0) else f"gradient {got}, not {expected}"


_OWN = ("qkv", "num_heads", "num_kv_heads", "grouped")
