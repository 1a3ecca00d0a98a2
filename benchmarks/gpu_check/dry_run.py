"""`gpu_check.sh --dry-run`: the plan, played with a simulated clock, and the files to copy to a GPU machine."""

import subprocess

from benchmarks.gpu_check.carry import CARRIED, ROOT
from benchmarks.gpu_check.plan import MIN_SECONDS, planned, play

MAX_BYTES = 64 << 20  # of all files; about the limit of a machine that is lent for minutes


def scaled(parts, seconds):
    """The planned seconds of each part, scaled down where `seconds` is less than their sum."""
    return [part.seconds * min(1.0, seconds / planned(parts)) for part in parts]


def played(parts, seconds, hangs=None):
    """[(begin, end, limit)] of a call whose parts take their planned time, and the part `hangs` all it may."""
    now, found, takes = 0.0, [], dict(zip(parts, scaled(parts, seconds), strict=True))

    def run(part, limit):
        nonlocal now
        end = now + (limit if part == hangs else min(limit, takes[part]))
        found.append((now, end, limit))
        now = end

    for _ in play(parts, seconds, run, lambda: now):
        pass
    return found


def plan_text(call, parts, seconds):
    lines = [f"{call}: at most {seconds:.0f} s"]
    for part, (begin, end, limit) in zip(parts, played(parts, seconds), strict=True):
        lines.append(f"{begin:5.0f} to {end:3.0f} s  {part.name:10}  at most {limit:3.0f} s: {part.what}")
    for at, part in enumerate(parts):
        found = played(parts, seconds, part)
        rest = list(zip(parts, scaled(parts, seconds), found, strict=True))[at + 1 :]
        less = [other.name for other, wants, (*_, limit) in rest if limit < wants - MIN_SECONDS]
        others = f"less for {', '.join(less)}" if less else "the others keep their time"
        lines.append(f"  if {part.name} hangs: stopped at {found[at][1]:.0f} s; {others}; ends at {found[-1][1]:.0f} s")
    return "\n".join(lines)


def travelling():
    """{path: bytes}: the files of the checkout that git does not ignore, and those of build/gpu."""
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    asked = subprocess.run(listed, capture_output=True, text=True, check=False)
    if asked.returncode:
        raise SystemExit("gpu_check.sh: --dry-run needs a git checkout, to list the files to copy")
    paths = [ROOT / name for name in asked.stdout.split("\0") if name] + sorted(CARRIED.rglob("*"))
    return {str(path.relative_to(ROOT)): path.stat().st_size for path in paths if path.is_file()}


def travel_text(files):
    lines = [f"{size:10,}  {name}" for name, size in files.items()]
    total, most = sum(files.values()), MAX_BYTES
    fits = "fits" if total <= most else "TOO MUCH for"
    lines.append(f"{len(files)} files travel, {total / 2**20:.1f} MiB, which {fits} {most >> 20} MiB")
    return "\n".join([*lines, *stale()])


def stale():
    """A line if build/gpu is missing or older than the sources of this checkout."""
    made = CARRIED / "carried.json"
    if not made.exists():
        return ["build/gpu is empty: benchmarks/gpu_check.sh prepare"]
    sources = [ROOT / "CMakeLists.txt", *ROOT.glob("csrc/**/*.*"), *ROOT.glob("benchmarks/*.cu*")]
    changed = [str(path.relative_to(ROOT)) for path in sources if path.stat().st_mtime > made.stat().st_mtime]
    return [f"build/gpu is older than {changed[0]}: benchmarks/gpu_check.sh prepare"] if changed else []
