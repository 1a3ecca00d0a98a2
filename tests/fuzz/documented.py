"""Which calls of apply are valid: written from its documentation, and not from the checks of the package."""

import itertools
import numbers
import sys

import torch
from calls import Call, Made, decidable, drawn_in, must
from memory import FLOATS, INTEGERS, OTHER_FLOATS, Drawn

import rope_ext

AXES = {"bshd": "bshd", "bhsd": "bhsd", "sbhd": "sbhd", "thd": "shd", "shd": "shd"}  # tokens are seqlen here
DEFAULTS = {"cos": None, "sin": None, "layout": "bshd", "interleaved": False, "rotary_dim": None, "rotary_offset": 0}
DEFAULTS |= {"positions": None, "offset": 0, "cu_seqlens": None, "inverse": False, "inv_freq": None}
DEFAULTS |= {"attention_scaling": 1, "rounding": "once", "out_interleaved": None, "out": None, "per_channel": None}
DEFAULTS |= {"norm": None, "eps": None}


def is_int(value):
    decidable(not isinstance(value, numbers.Integral) or isinstance(value, int))  # an int of NumPy
    return isinstance(value, int) and not isinstance(value, bool)


def check_scaling(value, arithmetic):
    must(isinstance(value, numbers.Real) and not isinstance(value, bool))
    must(
        abs(value) <= (sys.float_info.max if arithmetic == torch.float64 else torch.finfo(torch.float32).max)
    )  # no NaN


def is_tensor(value):
    if isinstance(value, Drawn):
        decidable(value.state != "meta")
        must(value.state != "sparse")
        return True
    return False


class Documented(Call):
    """A call of apply or apply_; check() says what the docstring of apply does."""

    def check(self):
        a = DEFAULTS | self.keywords
        layout, x = a["layout"], a["x"]
        must(isinstance(layout, str) and layout in AXES)
        must(type(a["interleaved"]) is bool and type(a["inverse"]) is bool)
        must(a["out_interleaved"] is None or type(a["out_interleaved"]) is bool)
        must(a["per_channel"] is None or type(a["per_channel"]) is bool)
        must(isinstance(a["rounding"], str) and a["rounding"] in ("once", "eager"))
        x = [x] if isinstance(x, Drawn) else x
        must(type(x) in (list, tuple) and 1 <= len(x) <= 8 and all(map(is_tensor, x)))
        at = {axis: AXES[layout].index(axis) for axis in AXES[layout]}
        first = x[0]
        must(first.dtype in FLOATS and all(t.dtype == first.dtype and len(t.shape) == len(at) for t in x))
        must(len({(t.shape[at["b"]] if "b" in at else 1, t.shape[at["s"]]) for t in x}) == 1)
        batch, seqlen = first.shape[at["b"]] if "b" in at else 1, first.shape[at["s"]]
        heads = [t.shape[at["h"]] for t in x]
        rotary_dim, start = a["rotary_dim"], a["rotary_offset"]
        must(is_int(start) and (rotary_dim is None or is_int(rotary_dim)))
        must(rotary_dim is not None or len({t.shape[-1] for t in x}) == 1)
        rotary_dim = first.shape[-1] - start if rotary_dim is None else rotary_dim
        must(start >= 0 and rotary_dim % 2 == 0 and rotary_dim >= 2)
        must(all(start + rotary_dim <= t.shape[-1] for t in x))
        pairs = rotary_dim // 2
        arithmetic = torch.float64 if first.dtype == torch.float64 else torch.float32
        if a["inv_freq"] is not None:
            check_scaling(a["attention_scaling"], arithmetic)
        self.check_norm(a, x, arithmetic)
        rows = self.check_tables(a, first.dtype, layout, batch, seqlen, heads, pairs)
        self.check_lookup(a, first.dtype, layout, batch, seqlen, rows)
        self.check_written(a, x)
        self.check_states(a, x)

    def check_norm(self, a, x, arithmetic):
        norm, eps = a["norm"], a["eps"]
        if norm is None:
            must(eps is None)
            return
        check_scaling(eps, arithmetic)
        must(eps >= 0)
        weights = [norm] * len(x) if isinstance(norm, Drawn) else norm
        must(type(weights) in (list, tuple) and len(weights) == len(x))
        must(all(weight is None or is_tensor(weight) for weight in weights))
        given = [(t, weight) for t, weight in zip(x, weights) if weight is not None]
        must(all(weight.dtype in FLOATS and weight.shape == t.shape[-1:] for t, weight in given))

    def check_tables(self, a, dtype, layout, batch, seqlen, heads, pairs):
        """Raises where cos, sin and inv_freq do not fit; returns rows of the table, None: one for each token, -1: no table."""
        cos, sin, inv_freq = a["cos"], a["sin"], a["inv_freq"]
        arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
        if inv_freq is not None:
            must(cos is None and sin is None and a["per_channel"] is not True)
            made = isinstance(inv_freq, Made)
            if made:
                must(inv_freq.arguments[1] == arithmetic)
                inv_freq = inv_freq.arguments[0]
            must(isinstance(inv_freq, Drawn))
            decidable(inv_freq.state is None and inv_freq.shares is None and not inv_freq.odd)
            decidable(inv_freq.dtype not in OTHER_FLOATS)
            must(inv_freq.dtype in FLOATS)
            must(1 <= len(inv_freq.shape) <= 3 and inv_freq.shape[-1] == pairs)
            if len(inv_freq.shape) > 1:
                must(all(inv_freq.shape[-2] in (1, n) for n in heads))
            self.axes = inv_freq.shape[0] if len(inv_freq.shape) == 3 else None
            must(self.axes != 0)
            return -1
        must(isinstance(a["attention_scaling"], (int, float)) and type(a["attention_scaling"]) is not bool)
        must(a["attention_scaling"] == 1)
        must(is_tensor(cos) and is_tensor(sin) and cos.shape == sin.shape and cos.dtype == sin.dtype)
        must(cos.dtype in (dtype, arithmetic))
        must(2 <= len(cos.shape) <= 4 and cos.shape[-1] in (pairs, 2 * pairs))
        must(a["per_channel"] is None or a["per_channel"] == (cos.shape[-1] == 2 * pairs))
        if len(cos.shape) == 2:
            return cos.shape[0]
        axes = "bsd" if len(cos.shape) == 3 else layout if len(layout) == 4 else "bshd"
        sizes = dict(zip(axes, cos.shape))
        must(sizes["b"] in (1, batch) and sizes["s"] == seqlen)
        must(all(sizes.get("h", 1) in (1, n) for n in heads))
        return None

    def check_lookup(self, a, dtype, layout, batch, seqlen, rows):
        positions, offset, cu_seqlens = a["positions"], a["offset"], a["cu_seqlens"]
        if rows is None:
            must(positions is None and cu_seqlens is None and is_int(offset) and offset == 0)
            return
        from_table = rows >= 0
        arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
        indices = [t for t in (positions, offset, cu_seqlens) if isinstance(t, Drawn)]
        decidable(all(t.shares is None and not t.has_sharers for t in indices))
        values = [range(seqlen)]
        if positions is not None:
            must(is_tensor(positions))
            fractions = not from_table and positions.dtype == arithmetic
            must(fractions or positions.dtype in INTEGERS)
            shape = positions.shape
            decidable(layout != "shd" or len(shape) < 2)
            if len(shape) == 3 and not from_table:
                decidable(self.axes is not None and layout not in ("thd", "shd"))
            must(1 <= len(shape) <= 2 or (len(shape) == 3 and not from_table and shape[0] == self.axes))
            must(layout != "thd" or len(shape) == 1)
            must(shape[-1] == seqlen and (len(shape) == 1 or shape[-2] in (1, batch)))
            decidable(fractions or positions.values is not None)
            values = [] if fractions else _split(positions.values, seqlen)
        if cu_seqlens is not None:
            must(is_tensor(cu_seqlens) and cu_seqlens.dtype in INTEGERS and layout == "thd" and positions is None)
            must(len(cu_seqlens.shape) == 1 and cu_seqlens.shape[0] > 0)
            decidable(cu_seqlens.values is not None and not _is_expanded(cu_seqlens))
            cu = cu_seqlens.values
            must(cu[0] == 0 and cu == sorted(cu) and cu[-1] <= seqlen)
            values = [range(end - start) for start, end in itertools.pairwise(cu)]
        if isinstance(offset, Drawn):
            must(is_tensor(offset) and offset.dtype in INTEGERS and offset.shape in ([], [1], [batch]))
            decidable(offset.values is not None and not _is_expanded(offset))
            offsets = offset.values
            must(from_table or cu_seqlens is None or offsets[0] + seqlen <= 2**63)
        else:
            must(is_int(offset) and -(2**63) <= offset < 2**63)
            must(from_table or positions is not None or offset + seqlen <= 2**63)
            offsets = [offset]
        decidable(positions is None or not _is_expanded(positions))
        if not from_table:
            decidable(batch * seqlen > 0 and any(t.numel for t in drawn_in(a["x"])))
        if not from_table and not (positions is None and isinstance(offset, int)):
            decidable(len(values) < 2 or len(offsets) < 2 or len(values) == len(offsets))  # else with axes
            each = zip(values, offsets) if 1 < len(values) == len(offsets) else itertools.product(values, offsets)
            must(all(-(2**63) <= end + o < 2**63 for row, o in each if row for end in (min(row), max(row))))
        if from_table:
            decidable(batch * seqlen > 0 and any(t.numel for t in drawn_in(a["x"])))
            if len(values) == 1 or len(offsets) == 1:  # the same rows or the same offset for the whole batch
                found = [v + o for o in offsets for row in values for v in row]
            else:
                found = [v + o for o, row in zip(offsets, values) for v in row]
            must(all(0 <= row < rows for row in found))

    def check_written(self, a, x):
        written, in_place = x, self.function is rope_ext.apply_
        if not in_place:
            out = a["out"]
            if out is None:
                return
            is_one = isinstance(a["x"], Drawn)
            must(isinstance(out, Drawn) if is_one else type(out) in (list, tuple))
            written = [out] if is_one else out
            must(len(written) == len(x) and all(map(is_tensor, written)))
            must(all(o.dtype == t.dtype and o.shape == t.shape for o, t in zip(written, x)))
        decidable(all(t.state != "negative bit" for t in written))
        others = [d for name, value in a.items() if name not in ("x", "out") for d in drawn_in(value)]
        if isinstance(a["inv_freq"], Made):
            others = [d for d in others if d not in drawn_in(a["inv_freq"])]  # it is read before the call
        decidable(not any(d in drawn_in(a["inv_freq"]) for d in others))  # a copy of it may be what is read
        bytes_of = {}
        for t in written:
            found = _bytes(t)
            must(len(found) == t.numel * t.dtype.itemsize)
            decidable(not t.numel or _nests(t))
            must(not any(found & other for other in bytes_of.values()))
            bytes_of[id(t)] = found
        for i, o in enumerate(written):
            for j, t in enumerate([] if in_place else x):
                same = i == j and (o.place(), o.strides) == (t.place(), t.strides)
                if same:
                    pairing = a["out_interleaved"]
                    must(pairing is None or pairing == a["interleaved"] or not o.numel)
                decidable(not (i == j and o.place() == t.place() and o.numel) or same)
                must(same or not bytes_of[id(o)] & _bytes(t))
            shared = [t for t in others if bytes_of[id(o)] & _bytes(t)]
            decidable(not shared or any(t.state != "negative bit" for t in shared))  # what is read of those is a copy
            must(not shared)
        must(not in_place or a["out_interleaved"] in (None, a["interleaved"]))

    def check_states(self, a, x):
        """What autograd allows."""
        recorded = self.mode is None
        read = [d for name, value in a.items() if name != "out" for d in drawn_in(value)]
        written = drawn_in(a["out"]) if a["out"] is not None else x if self.function is rope_ext.apply_ else []
        need = ("requires grad", "not a leaf", "parameter")
        for t in read:
            decidable(t.state != "inference" or not recorded or not any(d.state in need for d in read))
        if self.mode != "inference_mode":
            must(all(t.state != "inference" for t in written))
        if not recorded or not written:
            return
        must(all(t.state not in ("requires grad", "parameter") for t in written))
        if a["out"] is not None:
            must(not any(t.state in need and t.dtype in FLOATS for t in [*read, *written]))


def _split(values, seqlen):
    return [values[i : i + seqlen] for i in range(0, len(values), seqlen)] if seqlen else []


def _is_expanded(t):
    """Whether elements for which `values` has several entries share memory, except equal rows."""
    return (
        any(s == 0 and n > 1 for n, s in zip(t.shape, t.strides))
        and t.values is not None
        and not (len(t.shape) == 2 and t.strides == [0, 1] and t.values == t.values[: t.shape[1]] * t.shape[0])
    )


def _bytes(t):
    return {(buffer, at + byte) for buffer, at in t.addresses() for byte in range(t.dtype.itemsize)}


def _nests(t):
    """Strides that each step over all that the smaller ones reach: no others are known to be kept apart."""
    span = 1
    for s, n in sorted((s, n) for n, s in zip(t.shape, t.strides) if n > 1):
        if s < span:
            return False
        span += s * (n - 1)
    return True
