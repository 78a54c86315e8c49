"""`python -m benchmarks`: run cases, keep what was measured of each, and write docs/benchmarks.md."""

import argparse
import asyncio
import signal
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.cases import CASES, Case
from benchmarks.errors import BenchmarkError
from benchmarks.measure import Places, run_case
from benchmarks.report import as_markdown, as_text, machine
from benchmarks.results import RESULTS, Result, Store

_DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
_LIMIT_MINUTES = 60.0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure Baton against its rivals, in turn. What was measured of a case is kept"
        " as soon as it ends, and docs/benchmarks.md is written anew from all that is kept.",
        epilog="cases: " + "; ".join(f"{case.name} ({case.title})" for case in CASES),
    )
    names = [case.name for case in CASES]
    parser.add_argument("--case", action="append", choices=names, help="only this; repeatable")
    parser.add_argument(
        "--older-than",
        type=float,
        metavar="HOURS",
        help="only what was not measured within so many hours: goes on after an interruption",
    )
    parser.add_argument(
        "--render", action="store_true", help="measure nothing, only write the document"
    )
    parser.add_argument("--rounds", type=int, help="rounds of every case, in place of its own")
    parser.add_argument("--scale", type=float, help="make every tree so many times as large")
    parser.add_argument("--quick", action="store_true", help="small trees: does everything work?")
    parser.add_argument("--without", action="append", default=[], help="leave out a rival")
    parser.add_argument("--memory", type=Path, default=Path("/dev/shm"), help="a tmpfs [/dev/shm]")
    parser.add_argument(
        "--disk", type=Path, default=Path.cwd(), help="a directory on a disk [the current one]"
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=_LIMIT_MINUTES,
        metavar="MINUTES",
        help=f"a case that takes longer has failed [{_LIMIT_MINUTES:g}]",
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help=f"where results are kept [{RESULTS}]"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=_DOCUMENT,
        help=f"the document to write; '-' to keep and write nothing [{_DOCUMENT}; '-' with --quick"
        " or --scale]",
    )
    arguments = parser.parse_args()
    if arguments.quick or arguments.scale is not None:
        arguments.output = Path("-")
    return arguments


def _chosen(arguments: argparse.Namespace, store: Store) -> list[Case]:
    cases = [case for case in CASES if not arguments.case or case.name in arguments.case]
    if arguments.render:
        return []
    if arguments.older_than is not None:
        cases = [case for case in cases if not store.is_fresh(case.name, arguments.older_than)]
    if arguments.quick:
        cases = [case.quick() for case in cases]
    if arguments.scale is not None:
        cases = [case.scaled(arguments.scale) for case in cases]
    if arguments.rounds is not None:
        cases = [replace(case, rounds=max(1, arguments.rounds)) for case in cases]
    return cases


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def _run(case: Case, arguments: argparse.Namespace) -> Result:
    places = Places(arguments.memory, arguments.disk)
    async with asyncio.timeout(arguments.limit * 60):
        result = await run_case(case, places, say=_say, keep_out=frozenset(arguments.without))
    result.command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    result.machine = machine(arguments.memory, arguments.disk)
    return result


def _write(arguments: argparse.Namespace, store: Store) -> None:
    names = [case.name for case in CASES]
    kept = store.all(names)
    there = {result.case for result in kept}
    missing = [name for name in names if name not in there]
    arguments.output.write_text(as_markdown(kept, missing), encoding="utf-8")
    _say(f"written: {arguments.output}")


def main() -> int:
    """Run what the command line asks for; 1 when a case could not be carried out."""
    arguments = _arguments()
    store = Store(arguments.results)
    is_kept = str(arguments.output) != "-"
    # Whoever ends us finds nothing left either: cases remove what they made as they are left.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed: list[str] = []
    try:
        for case in _chosen(arguments, store):
            try:
                result = asyncio.run(_run(case, arguments))
            except Exception as error:  # noqa: BLE001 - whatever one fails of, the others are measured
                failed.append(case.name)
                _say(f"{case.name}: failed: {type(error).__name__}: {error}")
                continue
            print(as_text([result]), flush=True)
            if is_kept:
                store.keep(result)
                _write(arguments, store)
        if arguments.render and is_kept:
            _write(arguments, store)
    except BenchmarkError as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    if failed:
        _say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
