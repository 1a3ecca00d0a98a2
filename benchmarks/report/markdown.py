"""The Markdown page of a report: times, exactness, summary, and what was left out."""

from benchmarks.harness.measure import BUSY
from benchmarks.report.summary import AHEAD, best_peer, disturbed, label, title


def markdown(report, sections=()):
    """The whole report. sections: [(heading, text)] to put first."""
    parts = [title(report), shapes_text(report)]
    parts += [part for heading, text in sections if text for part in (f"## {heading}", text)]
    parts += ["## Times", times_table(report), "## Exactness"]
    parts += [exactness_table(report), "## Summary", summary_text(report["summary"])]
    left_out = left_out_text(report)
    parts += ["## Left out", left_out] if left_out else []
    if report.get("instructions"):
        parts += ["## Instructions", instructions_table(report["instructions"])]
    return "\n\n".join(parts) + "\n"


def grid(head, right, lines):
    """A Markdown table; the last `right` columns are aligned to the right."""
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
    """A line per case and variant of ours. (1.5x): 1.5 times the time of ours."""
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
        "ours",
        "peers of that form us",
        "copy us",
        "ours us",
        "% of copy",
        "GB/s",
        "lead over the best",
    ]
    legend = "% of copy: of the speed at which as many bytes are copied between contiguous tensors that exist."
    if any(map(disturbed, report["rows"])):
        legend += f"\n\\*: other processes kept more than {BUSY} cores busy meanwhile."
    return f"{legend}\n\n{grid(head, 5, lines)}"


def exactness_table(report):
    """A line per dtype and variant: its worst case."""
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
    head = ["dtype", "variant", "error of its worst case", "bound there", "correctly rounded, at least", "wrong cases"]
    return grid(head, 4, lines)


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
    table = grid(["ours", "peer", "cases", "smallest lead", "median lead", "smallest at"], 4, lines)
    behind = []
    for b in found["behind"]:
        notes = ["it is wrong"] * b["peer_wrong"] + ["disturbed"] * b["disturbed"]
        note = f" ({', '.join(notes)})" if notes else ""
        behind.append(f"* {b['case']}: {b['peer']} takes {b['lead']:.2f} of the time of {b['ours']}{note}")
    heading = f"Cases in which a peer is ahead by more than {round(100 * (AHEAD - 1))} %: {len(behind)}"
    uncounted = f"Disturbed cases, which count in no lead: {found['disturbed']}"
    return "\n".join([table, "", uncounted, "", heading, *behind])


def left_out_text(report):
    """Peers that are missing, and why a case has no row of one."""
    lines = [f"* {name}: {why}" for name, why in report["missing"].items()]
    lines += [f"* not measured, out of time: {case}" for case in report.get("not_measured", ())]
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
    note = "Per call, one thread, counted by callgrind (it has no AVX-512: the processor looks like one with AVX2)."
    return f"{note}\n\n{grid(['shape', 'dtype', 'variant', 'instructions'], 1, lines)}"
