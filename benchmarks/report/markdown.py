"""The Markdown page of a report: times, exactness, summary, and the cases and peers that were left out."""

from benchmarks.harness.measure import BUSY
from benchmarks.report.summary import AHEAD, best_peer, disturbed, label, title

LEGEND = "Times are medians. Every result is compared with a float64 rotation in the same run. Shapes:"


def markdown(report, sections=()):
    """The whole report. sections: [(heading, text)] that come before the times."""
    parts = ["# Speed of rope_ext beside other implementations", f"{title(report)}.\n{LEGEND}", shapes_text(report)]
    parts += [part for heading, text in sections if text for part in (f"## {heading}", text)]
    parts += ["## Times", times_table(report), "## Exactness"]
    parts += [exactness_table(report), "## Summary", summary_text(report["summary"])]
    left_out = left_out_text(report)
    parts += ["## Left out", left_out] if left_out else []
    if report.get("instructions"):
        parts += ["## Instructions", instructions_table(report["instructions"])]
    return "\n\n".join(parts) + "\n"


def grid(head, right, lines):
    """A Markdown table whose last `right` columns are aligned to the right."""
    rule = ["---"] * (len(head) - right) + ["---:"] * right
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *lines])


def shapes_text(report):
    shapes = {row["shape"]["name"]: row["shape"] for row in report["rows"]}
    sizes = {
        n: f"B{s['batch']} S{s['seqlen']} Hq{s['heads_q']} Hk{s['heads_k']} D{s['head_dim']}" for n, s in shapes.items()
    }
    return "\n".join(f"* {n}: {sizes[n]}; {s['why']}" for n, s in shapes.items())


def microseconds(result):
    return f"{result['us']:.1f}" if result["us"] < 100 else f"{result['us']:.0f}"


def times_table(report):
    """A line per case and variant of rope_ext. (1.5x): the peer takes 1.5 times as long."""
    lines = []
    for row in report["rows"]:
        for ours, r in row["results"].items():
            if not r["ours"]:
                continue
            best = best_peer(row["results"], r["form"])[0]
            same_form = {n: o for n, o in row["results"].items() if o["form"] == r["form"] and not o["ours"]}
            others = [
                f"{n} {microseconds(o)} ({o['us'] / r['us']:.1f}x{', wrong' * o['wrong']})"
                for n, o in sorted(same_form.items(), key=lambda item: item[1]["us"])
            ]
            mark = r" \*" if disturbed(row) else ""
            cells = [label(row, report) + mark, r["form"], ours, "; ".join(others)]
            cells += [
                microseconds(row["results"]["copy"]),
                microseconds(r),
                f"{100 / r['copies']:.0f}",
                f"{r['gb_per_s']:.1f}",
            ]
            lines.append([*cells, f"{same_form[best]['us'] / r['us']:.2f}" if best else ""])
    head = [
        "case",
        "form",
        "variant of rope_ext",
        "peers of the same form, us",
        "copy_ us",
        "rope_ext us",
        "% of copy_",
        "GB/s",
        "lead over the best peer",
    ]
    legend = "* *% of copy_*: speed relative to `copy_` of as many bytes between preallocated contiguous tensors.\n"
    legend += "* *lead*: time of the peer divided by that of rope_ext; the same factor follows a peer in parentheses."
    if any(map(disturbed, report["rows"])):
        legend += f"\n* \\*: other processes used more than {BUSY} cores during this case."
    return f"{legend}\n\n{grid(head, 5, lines)}"


def exactness_table(report):
    """A line per dtype and variant, with the case whose error is largest relative to its bound."""
    found = {}
    for row in report["rows"]:
        for name, r in row["results"].items():
            if name != "copy":
                found.setdefault((row["dtype"], name), []).append(r)
    lines = []
    for (dtype, name), results in found.items():
        worst = max(results, key=lambda r: (r["wrong"], r["max_error"] / r["error_bound"]))
        shares = [r["correctly_rounded"] for r in results if r["correctly_rounded"] is not None]
        share = f"{100 * min(shares):.2f} %" if shares else ""
        wrong = sum(r["wrong"] for r in results)
        cells = [dtype, name, f"{worst['max_error']:.3g}", f"{worst['error_bound']:.3g}", share]
        lines.append([*cells, f"**{wrong} of {len(results)}**" if wrong else "0"])
    head = [
        "dtype",
        "variant",
        "error in the worst case",
        "bound in that case",
        "minimum correctly rounded",
        "wrong cases",
    ]
    note = "* *worst case* of a variant: the case whose error is largest relative to its bound.\n"
    note += "* *correctly rounded*: share of results equal to the exact value rounded once to the dtype of x."
    return f"{note}\n\n{grid(head, 4, lines)}"


def summary_text(found):
    lines = [
        [
            f"{s['ours']} ({s['form']})",
            s["peer"],
            str(s["cases"]),
            f"{s['smallest']:.2f}x",
            f"{s['median']:.2f}x",
            s["smallest_at"],
        ]
        for s in (*found["best_peer"], *found["peers"])
    ]
    table = grid(["variant of rope_ext", "peer", "cases", "smallest lead", "median lead", "smallest at"], 4, lines)
    behind = []
    for b in found["behind"]:
        notes = ["its result is wrong"] * b["peer_wrong"] + ["disturbed"] * b["disturbed"]
        note = f" ({', '.join(notes)})" if notes else ""
        behind.append(f"* {b['case']}: {b['peer']} takes {b['lead']:.2f} of the time of {b['ours']}{note}")
    ahead = f"A peer is ahead by more than {round(100 * (AHEAD - 1))} % in {len(behind)} cases{':' if behind else '.'}"
    uncounted = f"Disturbed cases, which are excluded from all leads: {found['disturbed']}."
    return "\n".join([table, "", uncounted, "", ahead, "", *behind]).rstrip()


def left_out_text(report):
    """The peers that are not installed, and the reasons for which cases lack a peer."""
    lines = [f"* {name}: {why}" for name, why in report["missing"].items()]
    lines += [f"* not measured for lack of time: {case}" for case in report.get("not_measured", ())]
    lines += [f"* failed: {case}" for case in report.get("failed", ())]
    reasons = {}
    for row in report["rows"]:
        for name, why in row["left_out"].items():
            reasons.setdefault((name, why), []).append(row)
    return "\n".join([*lines, *(f"* {name}, {len(rows)} cases: {why}" for (name, why), rows in reasons.items())])


def instructions_table(counts):
    if "missing" in counts:
        return counts["missing"]
    lines = [[c["shape"], c["dtype"], c["variant"], f"{c['instructions']:.0f}"] for c in counts["rows"]]
    note = "Per call on one thread, counted by callgrind, which emulates a processor with AVX2 and without AVX-512."
    return f"{note}\n\n{grid(['shape', 'dtype', 'variant', 'instructions'], 1, lines)}"
