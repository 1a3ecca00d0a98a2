"""The targets on a GPU, the verdicts on them, and the short tables that gpu_check.sh prints."""

from benchmarks.report.markdown import grid, microseconds
from benchmarks.report.summary import best_peer, label, leads

COPY_SHARE, OF_SHAPES, OF_DTYPES = 95, ["prefill", "train", "long", "video"], ["bf16", "fp32"]  # percent of a copy
OVER_EMPTY = 1.0  # microseconds of the GPU over an empty kernel, for decode
SAME = 1.02  # a peer is ahead if it is faster by more than this, which is the noise between two measurements


def ours_of(row):
    return {name: r for name, r in row["results"].items() if r["ours"]}


def below_copy(report):
    """[(row, variant of rope_ext)] below COPY_SHARE, the slowest first."""
    found = [
        (r["copies"], row, name)
        for row in report["rows"]
        if row["shape"]["name"] in OF_SHAPES and row["dtype"] in OF_DTYPES
        for name, r in ours_of(row).items()
        if 100 / r["copies"] < COPY_SHARE
    ]
    return [(row, name) for _, row, name in sorted(found, key=lambda f: -f[0])]


def verdicts(report):
    """A line per target: met, or missed and in which cases."""
    of_copy = [row for row in report["rows"] if row["shape"]["name"] in OF_SHAPES and row["dtype"] in OF_DTYPES]
    below = [f"{label(row, report)} {n}: {100 / row['results'][n]['copies']:.0f} %" for row, n in below_copy(report)]
    tested = sum(len(ours_of(row)) for row in of_copy)
    lines = [_verdict(f"at least {COPY_SHARE} % of a copy: {', '.join(OF_SHAPES)} in bf16, fp32", below, tested)]
    small = [
        (f"{label(row, report)} {name}", r["graph_us"] - report["empty_launch"]["graph_us"])
        for row in report["rows"]
        if row["shape"]["name"] == "decode" and row["pass"] == "forward"
        for name, r in ours_of(row).items()
        if "graph_us" in r and "graph_us" in report.get("empty_launch", {})
    ]
    slow = [f"{name}: {over:+.1f} us" for name, over in small if over > OVER_EMPTY]
    lines.append(_verdict(f"decode within {OVER_EMPTY:g} us of an empty kernel, in a CUDA graph", slow, len(small)))
    pairs = [(f"{label(row, report)} {ours}", peer, lead) for row, ours, peer, lead in leads(report["rows"])]
    behind = [f"{ours}: {peer} {lead:.2f}x" for ours, peer, lead in pairs if lead < 1 / SAME]
    lines.append(_verdict("ahead of every peer of the same form", behind, len(pairs)))
    return lines


def _verdict(target, missed, tested):
    if not tested:
        return f"* {target}: not measured"
    if not missed:
        return f"* {target}: met, all {tested}"
    more = f"; and {len(missed) - 8} more" if len(missed) > 8 else ""
    return f"* {target}: MISSED in {len(missed)} of {tested}: {'; '.join(missed[:8])}{more}"


def speed_table(report):
    """A line per case: rope_ext in each form, and the best peers."""
    lines = []
    for row in report["rows"]:
        cells = [label(row, report), microseconds(row["results"]["copy"])]
        for form in ("functional", "out=", "in place"):
            mine = next((r for r in ours_of(row).values() if r["form"] == form), None)
            name, peer = best_peer(row["results"], form)
            cells.append(f"{microseconds(mine)} {mine['gb_per_s']:.0f} {100 / mine['copies']:.0f}%" if mine else "")
            if form != "out=":
                cells.append(f"{name} {peer['us'] / mine['us']:.2f}x" if mine and peer else "")
        lines.append(cells)
    head = ["case", "copy us", "apply us GB/s %", "best peer", "out= us GB/s %", "in place us GB/s %", "best in place"]
    note = "%: speed relative to copy_. GPU time between CUDA events, with the host ahead and the L2 flushed."
    note += " 1.50x: the peer takes 1.5 times as long."
    return f"{note}\n\n{grid(head, len(head) - 1, lines)}"


def launch_table(report, every=True):
    """A line per variant of the small cases; every=False: in bf16 and the half pairing only."""
    empty = report.get("empty_launch")
    if not empty:
        return ""
    lines = [["an empty kernel", "", _figure(empty, "graph_us"), "", _figure(empty, "host_us"), ""]]
    for row in report["rows"]:
        if every or (row["dtype"], row["pairing"]) == ("bf16", "half"):
            for name, r in row["results"].items():
                if "host_us" in r:
                    over = r.get("graph_us", 0) - empty.get("graph_us", 0)
                    over = f"{over:+.1f}" if {"graph_us"} <= r.keys() & empty.keys() else ""
                    cells = [label(row, report), name, _figure(r, "graph_us"), over]
                    lines.append([*cells, _figure(r, "host_us"), _figure(r, "host_forward_us")])
    head = ["case", "variant", "GPU us in a graph", "over empty", "host us", "of it recording the forward"]
    note = (
        "GPU: time per call of 100 calls in one CUDA graph. Host: from the call in Python until its work is queued;"
        " forward without grad, forward+backward as in training."
    )
    return f"{note}\n\n{grid(head, 4, lines)}"


def _figure(result, key):
    return f"{result[key]:.1f}" if key in result else ""


def counters_table(report):
    """The figures of counters.py, if it ran."""
    counters = report.get("counters", {"missing": ""})
    if "missing" in counters:
        return counters["missing"]
    names = list(dict.fromkeys(name for c in counters["rows"] for name in c["metrics"]))
    lines = [[c["case"], c["kernel"], *(c["metrics"].get(name, "") for name in names)] for c in counters["rows"]]
    return grid(["case", "kernel", *names], len(names), lines)


def reads_text(report):
    """The tables of the peers that do not read the same tables as rope_ext."""
    reads = {name: r["reads"] for row in report["rows"] for name, r in row["results"].items() if r.get("reads")}
    return "\n".join(f"* {name} reads {what}" for name, what in reads.items())


def sections(report):
    """[(heading, text)]: the sections of a GPU report that a CPU report lacks."""
    if "gpu" not in report["machine"]:
        return []
    found = [("Targets", "\n".join(verdicts(report))), ("Speed", speed_table(report))]
    found += [("Launches", launch_table(report)), ("Counters", counters_table(report))]
    return [*found, ("Tables that peers read", reads_text(report))]


def brief(report):
    """The report for a terminal, the verdicts last, since a terminal shows the end."""
    parts = [launch_table(report, every=False), speed_table(report), counters_table(report)]
    parts += ["\n".join(f"{key}: {'; '.join(report[key])}" for key in ("failed", "not_measured") if report.get(key))]
    missing = [f"{name} ({why})" for name, why in report["missing"].items()]
    parts += [f"peers left out: {'; '.join(missing)}" if missing else "", "\n".join(verdicts(report))]
    return "\n\n".join(part for part in parts if part) + "\n"
