"""docs/models.md from the records of `models.py`."""

from collections import Counter
from importlib.metadata import version

HEAD = """# transformers on rope_ext, model by model

Made by `python benchmarks/models.py --out docs/models.md` and nothing else: transformers {transformers}, torch {torch}, CPU.

Each type of model is built small, with random weights, and run three times on the same input: eager, eager again, and
inside `with rope_ext.patched(model)`. All tensors that the forward returns, caches too, must have the same bits, in float32
and in bfloat16. Then a backward in float32, from random gradients of all results: the gradients of all parameters are compared.
"""


def page(records):
    """The text: counts, then the types in groups."""
    groups = {}
    for record in sorted(records.values(), key=lambda r: r["type"]):
        groups.setdefault(_group(record), []).append(record)
    parts = [HEAD.format(transformers=version("transformers"), torch=version("torch")), _counts(records, groups)]
    parts += _wrong(groups.get("patched", []))
    for title, group, row in [
        ("Patched", "patched", _patched_rows),
        ("Left alone", "left alone", _left_alone_rows),
        ("Nothing rotates on the way of this input", "nothing rotates", _error_rows),
        ("Eager twice gives different bits", "not deterministic", _error_rows),
        ("No model to build", "no model", _error_rows),
        ("Not run", "not run", _error_rows),
    ]:
        if group in groups:
            parts.append(f"## {title}\n\n" + "\n".join(row(groups[group])) + "\n")
    return "\n".join(parts)


def _group(record):
    if record["status"] == "compared":
        return "patched"
    return "not run" if record["status"] == "died" else record["status"]


def _wrong(patched):
    """Whatever is not as it should be, first."""
    lines = [f"* `{r['type']}`: {_forward(r, 'fp32')}, {_forward(r, 'bf16')}, {r.get('error', '')}" for r in patched if wrong(r)]
    return ["## Wrong\n\n" + "\n".join(lines) + "\n"] if lines else []


def wrong(record):
    """Whether a patched type gave other bits, or failed where eager code did not."""
    return "error" in record or any(not record[name]["equal"] for name in ("fp32", "bf16"))


def _counts(records, groups):
    patched, alone = groups.get("patched", []), groups.get("left alone", [])
    graded = [r["fp32"]["gradients"] for r in patched if "gradients" in r["fp32"]]
    functions = Counter((name, dialect) for r in patched for name, dialect, _ in r["replaced"])
    reasons = Counter(reason.split(":")[0] for r in patched + alone for _, reason in r["left alone"])
    rows = [
        ("types whose modeling file speaks of rotary embeddings", len(records)),
        ("have no model of their own, or need a package that is not there", len(groups.get("no model", []))),
        ("could not be run", len(groups.get("not run", []))),
        ("run, but no rotary function is on the way", len(groups.get("nothing rotates", []))),
        ("**tried**: run, and rotate", len(patched) + len(alone) + len(groups.get("not deterministic", []))),
        ("eager twice gives different bits", len(groups.get("not deterministic", []))),
        ("no function replaced", len(alone)),
        ("**patched**", len(patched)),
        ("forward bit-equal in float32", sum(r["fp32"]["equal"] for r in patched)),
        ("forward bit-equal in bfloat16", sum(r["bf16"]["equal"] for r in patched)),
        ("**wrong**", sum(map(wrong, patched))),
        ("with a function replaced and another left alone", sum(bool(r["left alone"]) for r in patched)),
        ("with a backward", len(graded)),
        ("gradients of all parameters bit-equal", sum(g["equal"] for g in graded)),
        ("largest difference of the others, of the largest gradient of the parameter", _number(max([g["largest"] for g in graded], default=0))),
        ("functions replaced, all types", len(functions)),
        ("dialects", len({dialect for _, dialect in functions})),
        ("calls of replaced functions in a forward of each (float32 or bfloat16)", sum(r["calls"] for r in patched)),
        ("of these, went on to the original", sum(r["eager_calls"] for r in patched)),
    ]
    rows += [(f"functions left alone: {reason}", count) for reason, count in reasons.most_common()]
    return "\n".join(["| | |", "|---|---:|", *(f"| {what} | {count} |" for what, count in rows)]) + "\n"


def _forward(record, name):
    found = record.get(name)
    if not found:
        return "-"
    return ("equal" if found["equal"] else _number(found["largest"])) + ("" if found["finite"] else " (not finite)")


def _patched_rows(records):
    lines = ["| type | class | replaced | float32 | bfloat16 | gradients | left alone |", "|---|---|---|---|---|---|---|"]
    for r in records:
        graded = r["fp32"].get("gradients")
        gradients = "-" if graded is None else "equal" if graded["equal"] else _number(graded["largest"])
        replaced = "; ".join(f"{_short(name)} ({dialect.partition('.')[2]})" for name, dialect, _ in r["replaced"])
        alone = "; ".join(f"{_short(name)}: {reason}" for name, reason in r["left alone"])
        lines.append(
            f"| {r['type']} | {r['class']} | {replaced}{'' if r['calls'] else ', not called'} | {_forward(r, 'fp32')}"
            f" | {_forward(r, 'bf16')} | {gradients} | {alone} |"
        )
    return lines


def _left_alone_rows(records):
    rows = [f"| {r['type']} | " + "; ".join(f"{_short(n)}: {reason}" for n, reason in r["left alone"]) + " |" for r in records]
    return ["| type | left alone |", "|---|---|", *rows]


def _error_rows(records):
    if not any("error" in r for r in records):
        return [", ".join(r["type"] for r in records)]
    return ["| type | why |", "|---|---|", *(f"| {r['type']} | {r.get('error', '').replace('|', '/')} |" for r in records)]


def _short(name):
    """The function without the path of its module."""
    module, _, function = name.rpartition(".modeling_")
    return function.partition(".")[2] if module else name


def _number(value):
    return str(value) if isinstance(value, int) else f"{value:.1e}"
