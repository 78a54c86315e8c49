"""What a chaos run found, for a terminal and as one page of HTML without anything from elsewhere."""

import html
import re
from collections.abc import Iterable, Iterator
from statistics import quantiles

import msgspec

from cli.chaos import history as h
from cli.chaos.checker import Judgement, Verdict
from cli.chaos.drive import Report
from cli.chaos.local import ETCD

_SHOWN = 40
_NO_FAULT = "no fault near"
_SPLIT = re.compile("[> ]")
_MARKS = {Judgement.HOLDS: "good", Judgement.BROKEN: "bad", Judgement.UNSEEN: "none"}


_RECENT_S = 5.0
"""A fault may show that much after it was healed: leases last two seconds, and machines are busy."""


def takeovers(events: Iterable[h.Any]) -> list[tuple[str, float]]:
    """Return for every time that a job lost its owner: by which fault, seconds from it to the next.

    That is the latest fault, under way or just over, that hit this owner, else etcd; one without is
    a job that was given up while all was well, counted from then.
    """
    found = []
    faults: dict[int, h.Injected] = {}
    healed: dict[int, float] = {}
    owners: dict[str, str] = {}
    ownerless: dict[str, tuple[str, float]] = {}
    for event in events:
        match event:
            case h.Injected():
                faults[event.number] = event
            case h.Healed():
                healed[event.number] = event.at
            case h.Disowned():
                near = [
                    fault
                    for number, fault in faults.items()
                    if event.at - healed.get(number, event.at) <= _RECENT_S
                ]
                fault = _cause(near, owners.get(event.job, ""))
                ownerless[event.job] = (
                    (fault.fault, fault.at) if fault is not None else (_NO_FAULT, event.at)
                )
            case h.Owned():
                owners[event.job] = event.node
                if event.job in ownerless:
                    name, since = ownerless.pop(event.job)
                    found.append((name, event.at - since))
            case _:
                pass
    return found


def _cause(near: list[h.Injected], owner: str) -> h.Injected | None:
    for words in ({owner, "everything"}, {"etcd", *ETCD}):
        hit = [fault for fault in near if words & set(_SPLIT.split(fault.target))]
        if hit:
            return hit[-1]
    return None


def as_text(report: Report) -> Iterator[str]:
    """Yield the lines for a terminal."""
    changes = sum(isinstance(event, h.Changed) for event in report.events)
    yield f"seed {report.plan.seed}: {report.faults} faults, {changes} changes"
    for verdict in report.verdicts:
        line = f"{verdict.invariant:4} {verdict.judgement:14} {verdict.promise}"
        yield f"{line} ({verdict.evidence} observations)"
        if verdict.judgement is Judgement.BROKEN:
            yield f"     {verdict.what}"
            yield from (f"       {_line(event)}" for event in verdict.shown_by[-_SHOWN:])
    times = [seconds for _, seconds in takeovers(report.events)]
    if len(times) > 1:
        cuts = quantiles(times, n=100, method="inclusive")
        yield (
            f"without an owner, {len(times)} times: p50 {cuts[49]:.2f} s, p99 {cuts[98]:.2f} s, "
            f"longest {max(times):.2f} s (from the fault to the next claim)"
        )


def is_sound(verdicts: Iterable[Verdict]) -> bool:
    """Say whether nothing is broken."""
    return all(verdict.judgement is not Judgement.BROKEN for verdict in verdicts)


def as_html(report: Report) -> str:
    """Return the page."""
    end = max((event.at for event in report.events), default=0.0) or 1.0
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Baton under trouble</title>",
        f"<style>{_STYLE}</style><h1>Baton under trouble: seed {report.plan.seed}</h1>",
        "<table><tr><th>invariant</th><th>promise</th><th>verdict</th><th>observations</th></tr>",
    ]
    for verdict in report.verdicts:
        shown = "".join(f"<li>{html.escape(_line(event))}</li>" for event in verdict.shown_by)
        why = f"<p>{html.escape(verdict.what)}</p><ol>{shown}</ol>" if verdict.what else ""
        parts.append(
            f"<tr><td>{verdict.invariant}</td><td>{html.escape(verdict.promise)}{why}</td>"
            f"<td class='{_MARKS[verdict.judgement]}'>{verdict.judgement}</td>"
            f"<td>{verdict.evidence}</td></tr>"
        )
    parts.append("</table><h2>Time line</h2>")
    parts += _time_line(report, end)
    parts.append("<h2>From a fault to the next owner</h2>")
    parts += _histograms(report)
    return "".join(parts)


def _time_line(report: Report, end: float) -> Iterator[str]:
    """Draw a row for each fault and each job's owners, and one for the changes of writers."""
    healed = {event.number: event.at for event in report.events if isinstance(event, h.Healed)}
    rows: dict[str, list[tuple[float, float, str, str]]] = {}
    owners: dict[str, tuple[float, str]] = {}
    for event in report.events:
        match event:
            case h.Injected():
                until = healed.get(event.number, end)
                label = f"{event.fault} {event.target}, {event.at:.1f} to {until:.1f} s"
                rows.setdefault(event.fault, []).append((event.at, until, "fault", label))
            case h.Owned():
                owners[event.job] = (event.at, event.node)
            case h.Disowned() if event.job in owners:
                since, node = owners.pop(event.job)
                _owned(rows, event.job, since, event.at, node)
            case _:
                pass
    for job, (since, node) in owners.items():
        _owned(rows, job, since, end, node)
    height = 18
    width = 1_000
    yield f"<svg viewBox='0 0 {width + 260} {height * (len(rows) + 6)}'>"
    for number, name in enumerate(sorted(rows)):
        y = number * height
        yield f"<text x='0' y='{y + 13}'>{html.escape(name)}</text>"
        for begin, until, kind, label in rows[name]:
            x, wide = 260 + begin / end * width, max(1.5, (until - begin) / end * width)
            yield (
                f"<rect class='{kind}' x='{x:.1f}' y='{y + 2}' width='{wide:.1f}' "
                f"height='{height - 4}'><title>{html.escape(label)}</title></rect>"
            )
    yield from _throughput(report, end, width, len(rows) * height)
    yield from _exposure(report, end, width, (len(rows) + 3) * height)
    yield "</svg>"


def _owned(
    rows: dict[str, list[tuple[float, float, str, str]]],
    job: str,
    since: float,
    until: float,
    node: str,
) -> None:
    label = f"{node} owns {job}, {since:.1f} to {until:.1f} s"
    rows.setdefault(f"owner of {job}", []).append((since, until, f"owner {node}", label))


def _throughput(report: Report, end: float, width: int, y: int) -> Iterator[str]:
    slots = 100
    counts = [0] * (slots + 1)
    for event in report.events:
        if isinstance(event, h.Changed):
            counts[int(event.at / end * slots)] += 1
    most = max(counts) or 1
    yield f"<text x='0' y='{y + 30}'>changes made, at most {most * slots / end:.0f}/s</text>"
    for number, count in enumerate(counts):
        tall = count / most * 40
        x = 260 + number * width / slots
        yield f"<rect class='change' x='{x}' y='{y + 45 - tall:.1f}' width='8' height='{tall:.1f}'/>"


def _exposure(report: Report, end: float, width: int, y: int) -> Iterator[str]:
    seen = [event for event in report.events if isinstance(event, h.Exposed)]
    most = max((event.exposure_s for event in seen), default=0.0) or 1.0
    yield f"<text x='0' y='{y + 30}'>exposure in real time, at most {most:.1f} s</text>"
    for event in seen:
        tall = event.exposure_s / most * 40
        x = 260 + event.at / end * width
        yield f"<rect class='fault' x='{x:.1f}' y='{y + 45 - tall:.1f}' width='2' height='{tall:.1f}'/>"


def _histograms(report: Report) -> Iterator[str]:
    by_fault: dict[str, list[float]] = {}
    for fault, seconds in takeovers(report.events):
        by_fault.setdefault(fault, []).append(seconds)
    yield "<table><tr><th>fault</th><th>times</th><th>median</th><th>longest</th><th></th></tr>"
    for fault, times in sorted(by_fault.items()):
        times.sort()
        bars = "".join(
            f"<i style='height:{min(40, 2 + 40 * sum(low <= t < low + 0.25 for t in times) / len(times)):.0f}px'></i>"  # noqa: E501
            for low in (number / 4 for number in range(24))
        )
        yield (
            f"<tr><td>{fault}</td><td>{len(times)}</td><td>{times[len(times) // 2]:.2f} s</td>"
            f"<td>{times[-1]:.2f} s</td><td class='bars' title='0 to 6 s'>{bars}</td></tr>"
        )
    yield "</table>"


def _line(event: h.Any) -> str:
    plain = msgspec.to_builtins(event)
    at, kind = plain.pop("at"), plain.pop("event")
    said = ", ".join(f"{name} {value}" for name, value in plain.items() if value not in {"", None})
    return f"{at:9.3f} s {kind}: {said}"[:400]


_STYLE = """
body{font:15px/1.4 system-ui,sans-serif;max-width:80rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{text-align:left;padding:.25rem .8rem;border-bottom:1px solid #ddd}
.good{color:#067d2e}.bad{color:#b00020;font-weight:bold}.none{color:#777}
svg{width:100%;font-size:11px}.fault{fill:#c62828}.change{fill:#1565c0}
.owner{fill:#9e9e9e}.owner.c1{fill:#2e7d32}.owner.c2{fill:#6a1b9a}.owner.c3{fill:#ef6c00}
.bars{white-space:nowrap}.bars i{display:inline-block;width:6px;background:#1565c0;margin-right:1px}
"""
