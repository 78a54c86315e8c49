"""What was measured, as a table for a terminal and as docs/benchmarks.md."""

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks import failover, scale
from benchmarks.results import Result, Series

_HOW = """\
## How it is measured

- Real processes on one machine: an etcd, one coordinator and the workers of Baton; each rival's client
  and daemon. Everything crosses the loopback. Baton's is encrypted and authenticated on both sides
  (mutual TLS); the protocols of rsync's daemon and Unison's socket are neither.
- Baton's time is what a user waits: from the order through a coordinator's API until the outcome is in
  the ledger and has been told. *By its record* is the span between `started` and `ended` of that
  run. A rival's time is that of its command, from start to exit.
- First copies go to a target that does not exist. Where something is changed, every side keeps its copy
  and follows the changes of each round.
- In every round each side copies once, one after the other. The table has the median over the rounds,
  and the best and the worst. The ratio is the rival's time by Baton's, the median over the rounds: above
  1 Baton is faster. Single times move with the machine; ratios of neighbours in time much less.
- After each copy the numbers of files and bytes at the target are compared with the source's, and what
  was changed. Baton checks the BLAKE3 digest of every file besides, on arrival; rsync checks its own.
- CPU is user and system time of all processes of a side, etcd left out. *Wire* is all that went over the
  loopback, or over the link, in both directions, headers, orders and etcd included. *Memory* is the most
  that any one process of the side held.
- *In memory* is a tmpfs and `durability: fast`: what the engine itself costs. *On a disk, durable* is
  `durability: strict` against `--fsync`; before every copy the disk is synced and rests for three
  seconds, since virtual disks often have a budget of fast writes. `cp` is followed by `sync -f` there.
- The link of 50 ms is two TUN devices and a process between them (`benchmarks/delayed_link.py`), with
  the kernel's own socket buffers. *baton-near* is the same job on the loopback, in the same rounds.
- `cp -a` is no rival but a scale: one process, no network, no digest, no fencing, no second look. So is
  *baton-one*: one target in place of five.
- Syncthing is ordered to scan, for by itself it waits ten seconds, and is done when both of its ends say
  that they and the other need nothing.
"""


_HEAD = """\
| case | measured | side | median | best to worst | by its record | CPU | wire | memory | by Baton's |
|---|---|---|---|---|---|---|---|---|---|"""


def machine(memory: Path, disk: Path) -> list[str]:
    """Return what the figures depend on, a fact a line. Blocks on small commands."""
    facts = [
        f"{_cpu_model()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB of memory",
        f"Linux {platform.release()}; {memory}: {_file_system(memory)}; disk: {_file_system(disk)}",
        f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("grpcio", "blake3", "msgspec")),
    ]
    commands = (["rsync", "--version"], ["unison", "-version"], ["rclone", "version"])
    facts += [_first_line(one) for one in commands if shutil.which(one[0]) is not None]
    if shutil.which("syncthing") is not None:
        facts.append(_first_line(["syncthing", "--version"]).partition(" (")[0])
    return facts


def as_text(results: Sequence[Result]) -> str:
    """Return the tables for a terminal."""
    lines = []
    for result in results:
        lines.append(f"{result.case}: {result.says} (took {result.took_s:.0f} s)")
        for series in result.series:
            best, worst = series.spread_s
            is_ours = series is result.series[0]
            ratio = "" if is_ours else f"  {result.ratio(series):5.2f} x"
            lines.append(
                f"  {series.name:13} {series.wall_s:8.3f} s ({best:.3f} to {worst:.3f}),"
                f" CPU {series.cpu_s:6.2f} s, wire {series.wire_bytes / 1e6:.2f} MB,"
                f" peak {series.peak_bytes >> 20} MiB{ratio}"
            )
        lines += [f"  not run: {why}" for why in result.left_out]
    return "\n".join(lines)


def as_markdown(results: Sequence[Result], missing: Sequence[str] = ()) -> str:
    """Return the document of all that is kept; `missing` are the cases of which nothing is."""
    parts = [
        "# Benchmarks\n",
        "Written by `python -m benchmarks` from what was measured last of each case.",
        "Run `make bench` on your own: the ratios count.\n",
        *_measured_where(results),
        "## Results\n",
        _HEAD,
        *(_row(result, one) for result in results for one in result.series),
        "",
    ]
    for result in results:
        parts.append(f"- **{result.case}**: {result.says}.")
        parts += [f"  - {one.name}: {one.says}" for one in result.series]
        parts += [f"  - not run: {why}" for why in result.left_out]
    if missing:
        parts.append(f"- Not measured yet: {', '.join(missing)}.")
    parts += ["", failover.section(), scale.section(), _HOW]
    notes = Path(__file__).with_name("notes.md")
    if notes.exists():
        parts.append(notes.read_text(encoding="utf-8"))
    return "\n".join(parts)


def _measured_where(results: Sequence[Result]) -> list[str]:
    """Say on what the cases were measured, once for all that were measured on the same."""
    cases: dict[tuple[str, ...], list[str]] = {}
    for result in results:
        cases.setdefault(tuple(result.machine), []).append(result.case)
    parts = []
    for facts, names in cases.items():
        if len(cases) > 1:
            parts.append(f"{', '.join(names)}:\n")
        parts += [*(f"- {fact}" for fact in facts), ""]
    return parts


def _row(result: Result, series: Series) -> str:
    best, worst = series.spread_s
    own = "" if series.own_s is None else f"{series.own_s:.2f} s"
    is_ours = series is result.series[0]
    ratio = "1" if is_ours else f"**{result.ratio(series):.2f}**"
    name = f"**{series.name}**" if is_ours else series.name
    case, day = (result.case, f"{result.at:%Y-%m-%d}") if is_ours else ("", "")
    return (
        f"| {case} | {day} | {name} | {series.wall_s:.2f} s"
        f" | {best:.2f} to {worst:.2f} s | {own} | {series.cpu_s:.1f} s"
        f" | {series.wire_bytes / 1e6:,.2f} MB | {series.peak_bytes >> 20} MiB | {ratio} |"
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)


def _file_system(path: Path) -> str:
    """Return the type of the file system at `path`, as the mount table has it."""
    mounts = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        mounts[where] = kind
    at = path.resolve()
    for one in (at, *at.parents):
        if str(one) in mounts:
            return mounts[str(one)]
    return "an unknown file system"


def _first_line(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    return " ".join(done.stdout.partition("\n")[0].split())
