"""Generates docs/models.md from the records of `run.py`."""

import textwrap
from importlib.metadata import version

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
HEAD = """# Models of transformers on rope_ext

The command `python -m tests.conformance.transformers.run --out docs/models.md` generates this page. Versions:
transformers {transformers}, torch {torch}. Machine: CPU, one thread per process, {seconds:.0f} seconds in total.

This comparison shows which models `rope_ext.patch` supports. Each model type is built small, with random weights, and
runs on the same input three times: in eager mode, in eager mode again, and inside `with rope_ext.patched(model)`. The
comparison has four parts:

* Forward: all tensors that the model returns, caches included, must be bit-identical, in float32 and in bfloat16.
* Backward, from random gradients of all results: the gradients of all parameters are compared.
* Sensitivity: the results of rope_ext are changed by 1 %, and the results of the model must change. This shows that
  equal results do not come from an input that hides the rotation.
* Patch by type: in float32 the comparison runs again with `rope_ext.patched(type)` before the model is built. It must
  give the same results, make as many calls, and replace at least the same functions.

In the tables, *equal* means equal bit for bit. Otherwise a cell holds the largest difference, for gradients relative to
the largest gradient of the parameter, and names up to three of the parameters that differ.
"""
GROUPS = {
    "patched": ("Patched", ""),
    "once": (
        'Left alone, replaced with `rounding="once"`',
        "These models multiply complex numbers. PyTorch rounds complex products differently by shape and strides, so\n"
        "bit-identical results cannot be promised. The table compares eager code with\n"
        '`rope_ext.patched(model, rounding="once")`.',
    ),
    "not called": (
        "Not called",
        "A function was replaced, but the input does not reach it: it belongs to another part (vision, audio), or to a\n"
        "class that the small model does not use.",
    ),
    "not deterministic": ("Not deterministic", "Two eager runs differ."),
    "nothing rotates": ("Nothing rotates", "The classes of these models reach no function that rotates."),
    "no model": ("No model", "The type is a part of another type, or needs a package that is not installed."),
    "not run": ("Not run", "The small model could not be built or run."),
}


def page(records):
    """The text of the page: counts, then the types in groups."""
    groups = {name: [] for name in GROUPS}
    for record in sorted(records.values(), key=lambda r: r["type"].lower()):
        groups["not run" if record["status"] == "died" else record["status"]].append(record)
    seconds = sum(r.get("seconds", 0) for r in records.values())
    versions = {name: version(name) for name in ("transformers", "torch")}
    parts = [HEAD.format(**versions, seconds=seconds), _counts(records, groups)]
    if lines := [f"* `{r['type']}`: {r.get('fp32')}, {r.get('bf16')}" for r in groups["patched"] if wrong(r)]:
        parts.append("## Wrong\n\n" + "\n".join(lines) + "\n")
    for name, (title, text) in GROUPS.items():
        if groups[name]:
            rows = _compared(groups[name]) if name in ("patched", "once") else _named(groups[name])
            parts.append("\n\n".join(filter(None, [f"## {title}: {len(groups[name])}", text, rows])) + "\n")
    return "\n".join(parts)


def wrong(record):
    """Whether a patched type differs, fails where eager code does not, or is patched less by its type."""
    others = any("equal" in record.get(name, {}) and not record[name]["equal"] for name in DTYPES)
    by_type = record.get("by type")
    return others or (by_type is not None and not _as_the_model(by_type, record))


def _as_the_model(by_type, record):
    return by_type["equal"] and by_type["calls"] == record["fp32"]["calls"] and not by_type["lacks"]


def _counts(records, groups):
    patched, tried = groups["patched"], groups["patched"] + groups["once"] + groups["not deterministic"]
    by_type = [r for r in records.values() if "by type" in r]
    besides = sum(bool(r["by type"]["besides"]) for r in by_type)
    runs = [r[name] for r in patched for name in DTYPES if "calls" in r.get(name, {})]
    functions = {(name, dialect) for r in patched for name, dialect, _ in r["replaced"]}
    rows = [
        ("types whose modeling file mentions rotary embeddings", len(records)),
        *(
            (f"{title.lower()}", len(groups[name]))
            for name, (title, _) in GROUPS.items()
            if name not in ("patched", "once")
        ),
        ("**tried**: built, run, and rotating", len(tried)),
        ("**patched**", len(patched)),
        ('left alone by default (the table below has `rounding="once"`)', len(groups["once"])),
        ("patched, and another function left alone", sum(bool(r["left alone"]) for r in patched)),
        ("forward bit-identical in float32", sum(r["fp32"].get("equal", False) for r in patched)),
        ("forward bit-identical in bfloat16", sum(r["bf16"].get("equal", False) for r in patched)),
        ("not compared in bfloat16, in which the eager model fails", sum("equal" not in r["bf16"] for r in patched)),
        ("**wrong**", sum(map(wrong, patched))),
        ("results not finite, as in eager mode", sum(not r["fp32"].get("finite", True) for r in patched)),
        ("results change when those of rope_ext are changed", sum(r["fp32"].get("noticed", False) for r in patched)),
        *(row for name, dtype in DTYPES.items() for row in _gradient_counts(patched, name, dtype)),
        ("functions replaced", len(functions)),
        ("dialects", len({dialect for _, dialect in functions})),
        ("calls of replaced functions in these forwards", sum(run["calls"] for run in runs)),
        ("of these, passed on to the original function", sum(run["went_on"] for run in runs)),
        ("patched by type before the model was built", len(by_type)),
        (
            "of these, with the same results, functions and calls as after patching the model",
            sum(_as_the_model(r["by type"], r) for r in by_type),
        ),
        ("of these, with further functions replaced, those of other parts: a type stands for its modules", besides),
    ]
    return "\n".join(["| | |", "|---|---:|", *(f"| {what} | {count} |" for what, count in rows)]) + "\n"


def _gradient_counts(patched, name, dtype):
    graded = [r[name]["gradients"] for r in patched if "gradients" in r[name]]
    others = [g for g in graded if not g["equal"]]
    norms = sum(map(only_norms, others))
    return [
        (f"with a backward in {dtype}", len(graded)),
        ("gradients bit-identical for all parameters", len(graded) - len(others)),
        (
            "gradients bit-identical except for weights of norms before the rotation: sums over tokens in another order",
            norms,
        ),
        ("gradients bit-identical except for other parameters, named in the table", len(others) - norms),
        ("largest difference, relative to the largest gradient of the parameter", _largest(others)),
    ]


def _largest(gradients):
    return _number(max([0.0] + [g["largest"] for g in gradients]))


def only_norms(gradients):
    """Whether only weights of norms differ: sums over tokens, in another memory order than in eager code."""
    return all(name.endswith("norm.weight") for name in gradients["differ"])


def _compared(records):
    lines = [
        "| type | class | replaced | float32 | gradients | bfloat16 | gradients |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in records:
        replaced = r.get("once") or r["replaced"]
        words = [f"{_short(name)} ({dialect.partition('.')[2]})" for name, dialect, _ in replaced]
        words += [f"{_short(name)} left alone" for name, _ in r["left alone"] if "once" not in r]
        results = [cell for name in DTYPES for cell in (_forward(r[name]), _gradients(r[name]))]
        lines.append("| " + " | ".join([r["type"], r["class"], "; ".join(words), *results]) + " |")
    return "\n".join(lines)


def _forward(found):
    if "equal" not in found:
        return "eager fails"
    text = "equal" if found["equal"] else found.get("error") or _number(found["largest"])
    return (
        text
        + ("" if found.get("finite", True) else ", not finite")
        + ("" if found.get("noticed", True) else ", not noticed")
    )


def _gradients(found):
    if "gradients" not in found:
        return "-"
    graded = found["gradients"]
    names = sorted({".".join(name.split(".")[-2:]) for name in graded["differ"]})
    return "equal" if graded["equal"] else f"{_number(graded['largest'])}: {', '.join(names[:3])}"


def _named(records):
    """A list of types, or a table with the reason for each if there are reasons."""
    if not any("error" in r for r in records):
        return textwrap.fill(", ".join(r["type"] for r in records), 118, break_on_hyphens=False)
    return "\n".join(
        ["| type | why |", "|---|---|", *(f"| {r['type']} | {r['error'].replace('|', '/')} |" for r in records)]
    )


def _short(name):
    """The name of a function without its module."""
    module, _, function = name.rpartition(".modeling_")
    return function.partition(".")[2] if module else name


def _number(value):
    return str(value) if isinstance(value, int) else f"{value:.1e}"
