"""docs/models.md from the records of `run.py`."""

from importlib.metadata import version

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
HEAD = """# transformers on rope_ext, model by model

Made by `python -m tests.conformance.transformers.run --out docs/models.md` and nothing else. transformers {transformers},
torch {torch}, CPU, one thread per process; {seconds:.0f} seconds of computing.

Each type of model is built small, with random weights, and run on the same input eager, eager again and inside
`with rope_ext.patched(model)`. All tensors that a forward returns, caches too, must have the same bits, in float32 and
in bfloat16. Then a backward from random gradients of all results: the gradients of all parameters are compared. Last,
the results of rope_ext are changed by 1 %, which the results of the model must show, so that equal bits are no accident
of the input. And once more in float32 with `rope_ext.patched(type)` before the model is built: the same results, as many
calls, no function less.
"""
GROUPS = {
    "patched": ("Patched", ""),
    "once": (
        'Left alone, replaced with `rounding="once"`',
        "These multiply complex numbers, which torch rounds in one way or another by shape and strides, so equal bits\n"
        'cannot be promised. Compared here is what `rope_ext.patched(model, rounding="once")` gives.',
    ),
    "not called": (
        "Not called",
        "A function was replaced, but this input does not reach it: it belongs to another part (vision, audio), or to\n"
        "a class that the small model does not use.",
    ),
    "not deterministic": ("Not deterministic", "Eager twice gives different bits."),
    "nothing rotates": ("Nothing rotates", "No function that rotates is within reach of the classes of these models."),
    "no model": ("No model", "Part of another type, or in need of a package that is not installed."),
    "not run": ("Not run", "The small model could not be built or run."),
}


def page(records):
    """The text: counts, then the types in groups."""
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
    """Whether a patched type gave other bits, or failed where eager code did not; or its patch by type did less."""
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
        ("types whose modeling file speaks of rotary embeddings", len(records)),
        *(
            (f"{title.lower()}", len(groups[name]))
            for name, (title, _) in GROUPS.items()
            if name not in ("patched", "once")
        ),
        ("**tried**: built, run, and rotating", len(tried)),
        ("**patched**", len(patched)),
        ("left alone (what they get with rounding=once: below)", len(groups["once"])),
        ("patched, and another function left alone", sum(bool(r["left alone"]) for r in patched)),
        ("forward bit-equal in float32", sum(r["fp32"].get("equal", False) for r in patched)),
        ("forward bit-equal in bfloat16", sum(r["bf16"].get("equal", False) for r in patched)),
        ("no bfloat16: eager fails", sum("equal" not in r["bf16"] for r in patched)),
        ("**wrong**", sum(map(wrong, patched))),
        ("results not finite, eager too", sum(not r["fp32"].get("finite", True) for r in patched)),
        ("results notice that those of rope_ext are changed", sum(r["fp32"].get("noticed", False) for r in patched)),
        *(row for name, dtype in DTYPES.items() for row in _gradient_counts(patched, name, dtype)),
        ("functions replaced", len(functions)),
        ("dialects", len({dialect for _, dialect in functions})),
        ("calls of replaced functions in these forwards", sum(run["calls"] for run in runs)),
        ("of these, went on to the original", sum(run["went_on"] for run in runs)),
        ("patched by type before the model was built", len(by_type)),
        (
            "results, functions and calls as with the model patched",
            sum(_as_the_model(r["by type"], r) for r in by_type),
        ),
        ("... and functions of other parts replaced besides: a type stands for its modules", besides),
    ]
    return "\n".join(["| | |", "|---|---:|", *(f"| {what} | {count} |" for what, count in rows)]) + "\n"


def _gradient_counts(patched, name, dtype):
    graded = [r[name]["gradients"] for r in patched if "gradients" in r[name]]
    others = [g for g in graded if not g["equal"]]
    norms = sum(map(only_norms, others))
    return [
        (f"with a backward in {dtype}", len(graded)),
        ("gradients of all parameters bit-equal", len(graded) - len(others)),
        ("... of all but the weights of norms before the rotation: sums over tokens in another order", norms),
        ("... of all but others (the table names them)", len(others) - norms),
        ("largest difference, relative to the largest gradient of the parameter", _largest(others)),
    ]


def _largest(gradients):
    return _number(max([0.0] + [g["largest"] for g in gradients]))


def only_norms(gradients):
    """Whether only weights of norms differ: sums over tokens, which eager code has in another order in memory."""
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
    """A list of types, or a table where something is to be said of each."""
    if not any("error" in r for r in records):
        return ", ".join(r["type"] for r in records)
    return "\n".join(
        ["| type | why |", "|---|---|", *(f"| {r['type']} | {r['error'].replace('|', '/')} |" for r in records)]
    )


def _short(name):
    """The function without the path of its module."""
    module, _, function = name.rpartition(".modeling_")
    return function.partition(".")[2] if module else name


def _number(value):
    return str(value) if isinstance(value, int) else f"{value:.1e}"
