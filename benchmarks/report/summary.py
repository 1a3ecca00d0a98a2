"""The summary of a report: how far rope_ext leads each peer, and the cases in which a peer is ahead."""

import statistics

from benchmarks.harness.measure import BUSY
from benchmarks.harness.variants import FORMS

AHEAD = 1.05  # a peer this many times as fast as rope_ext is listed


def title(report):
    m = report["machine"]
    if "gpu" in m:
        versions = f"driver {m['driver']}, CUDA {m['cuda']}, torch {m['torch']}"
        return f"{m['gpu']}, {versions}, commit {m['commit']}, {m['date']}"
    threads = sorted({row["threads"] for row in report["rows"]})
    threads = f"{' and '.join(map(str, threads))} thread{'s' * (threads != [1])}"
    return f"{m['cpu']} ({m['capability']}), {threads}, torch {m['torch']}, commit {m['commit']}, {m['date']}"


def label(row, report):
    """The name of a case; memory, threads and malloc are named only where they are not the usual ones."""
    several = len({r["threads"] for r in report["rows"]}) > 1
    parts = [row["shape"]["name"], row["dtype"], row["pairing"], row["pass"]]
    parts += [row["memory"]] if row["memory"] != "bshd" else []
    parts += ["norm"] if row.get("norm") else []
    parts += [f"{row['threads']} threads" if row["threads"] > 1 else "1 thread"] if several else []
    parts += ["tuned malloc"] if row["malloc"] == "tuned" else []
    return " ".join(parts)


def leads(rows):
    """(row, variant of rope_ext, peer, lead) for each peer of the same form. lead: time of the peer / time of ours."""
    for row in rows:
        for ours, mine in row["results"].items():
            for peer, theirs in row["results"].items():
                if mine["ours"] and not theirs["ours"] and theirs["form"] == mine["form"]:
                    yield row, ours, peer, theirs["us"] / mine["us"]


def best_peer(results, form):
    """(name, figures) of the fastest peer of a form, even if its result is wrong; (None, None) without a peer."""
    peers = [(name, r) for name, r in results.items() if r["form"] == form and not r["ours"]]
    return min(peers, key=lambda peer: peer[1]["us"], default=(None, None))


def disturbed(row):
    return row["busy_elsewhere"] > BUSY


def summary(report):
    """{"best_peer": [...], "peers": [...], "behind": [...]}: smallest and median leads; cases where peers are ahead.

    Leads exclude disturbed cases, which could flatter them; "behind" includes disturbed cases.
    """
    pairs = [(label(row, report), row, *rest) for row, *rest in leads(report["rows"])]
    against_best, against_each = {}, {}
    for case, row, ours, peer, lead in pairs:
        form = row["results"][ours]["form"]
        if disturbed(row):
            continue
        against_each.setdefault((ours, peer, form), []).append((lead, case))
        if peer == best_peer(row["results"], form)[0]:
            against_best.setdefault((ours, "best peer", form), []).append((lead, case))

    def line(key, found):
        smallest, case = min(found)
        numbers = {"cases": len(found), "smallest": smallest, "median": statistics.median(lead for lead, _ in found)}
        return {**dict(zip(("ours", "peer", "form"), key)), **numbers, "smallest_at": case}

    behind = [
        {
            **{"case": case, "ours": ours, "peer": peer, "lead": lead},
            **{"peer_wrong": row["results"][peer]["wrong"], "disturbed": disturbed(row)},
        }
        for case, row, ours, peer, lead in pairs
        if lead < 1 / AHEAD
    ]
    return {
        "best_peer": [line(*item) for item in against_best.items()],
        "peers": [line(*item) for item in against_each.items()],
        "disturbed": sum(map(disturbed, report["rows"])),
        "behind": sorted(behind, key=lambda b: b["lead"]),
    }


def forms_of(report):
    """The (pass, form) pairs of the report, in the order of the panels of the picture."""
    seen = {(row["pass"], r["form"]) for row in report["rows"] for r in row["results"].values()}
    return [(p, form) for p in ("forward", "forward+backward") for form in FORMS if (p, form) in seen]
