"""The tables of docs/performance.md and README.md, from the report of a CPU: half pairing, times in microseconds."""

from benchmarks.report.markdown import grid, microseconds
from benchmarks.report.summary import best_peer

OURS = {"functional": "rope_ext", "out=": "rope_ext out=", "in place": "rope_ext in place"}
PEERS = ["eager", "torch.compile", "ONNX Runtime", "vLLM"]
README_DTYPES = ["bf16", "fp32"]


def rows_of(report):
    return [row for row in report["rows"] if row["pairing"] == "half"]


def full_table(report):
    """A line per shape, dtype and pass."""
    head = ["shape", "dtype", "pass", "`copy_`", "`apply`", "`out=`", "`apply_`", "eager", "torch.compile"]
    head += ["ONNX Runtime (out=)", "vLLM (in place)"]
    lines = []
    for row in rows_of(report):
        results = row["results"]
        cells = [row["shape"]["name"], row["dtype"], row["pass"], microseconds(results["copy"])]
        cells += [microseconds(results[name]) if name in results else "" for name in OURS.values()]
        lines.append([*cells, *(_relative(results, name) for name in PEERS)])
    return grid(head, len(head) - 3, lines)


def small_table(report):
    """A line per shape and dtype, forward, with the fastest peer in any form."""
    head = ["shape", "dtype", "`copy_`", "`apply`", "`apply_`", "eager", "torch.compile", "fastest peer"]
    lines = []
    for row in rows_of(report):
        if row["pass"] == "forward" and row["dtype"] in README_DTYPES:
            results = row["results"]
            cells = [row["shape"]["name"], row["dtype"]]
            cells += [microseconds(results[name]) for name in ("copy", OURS["functional"], OURS["in place"])]
            cells += [_relative(results, name) for name in PEERS[:2]]
            fastest = min((best_peer(results, form) for form in OURS), key=_time)[0]
            lines.append([*cells, f"{fastest} ({results[fastest]['form']}) {_relative(results, fastest)}"])
    return grid(head, len(head) - 2, lines)


def _time(peer):
    name, figures = peer
    return figures["us"] if name else float("inf")


def _relative(results, peer):
    """The time of a peer, and in parentheses relative to rope_ext's call of the same form."""
    if peer not in results:
        return ""
    theirs = results[peer]
    return f"{microseconds(theirs)} ({theirs['us'] / results[OURS[theirs['form']]]['us']:.1f}x)"
