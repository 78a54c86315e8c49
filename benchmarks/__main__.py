"""`python -m benchmarks`: run cases, print a table, write docs/benchmarks.md."""

import argparse
import asyncio
import signal
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.cases import CASES, Case
from benchmarks.errors import BenchmarkError
from benchmarks.measure import Comparison, Places, run_case
from benchmarks.report import as_markdown, as_text, machine

_DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure Baton against its rivals, in turn, and write docs/benchmarks.md.",
        epilog="cases: " + "; ".join(f"{case.name} ({case.title})" for case in CASES),
    )
    names = [case.name for case in CASES]
    parser.add_argument("--case", action="append", choices=names, help="only this; repeatable")
    parser.add_argument("--rounds", type=int, help="rounds of every case, in place of its own")
    parser.add_argument("--scale", type=float, help="make every tree so many times as large")
    parser.add_argument("--quick", action="store_true", help="small trees: does everything work?")
    parser.add_argument("--without", action="append", default=[], help="leave out a rival")
    parser.add_argument("--memory", type=Path, default=Path("/dev/shm"), help="a tmpfs [/dev/shm]")
    parser.add_argument(
        "--disk", type=Path, default=Path.cwd(), help="a directory on a disk [the current one]"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help=f"the document to write; '-' for none [{_DOCUMENT}, none when --quick or --case]",
    )
    return parser.parse_args()


def _chosen(arguments: argparse.Namespace) -> list[Case]:
    cases = [case for case in CASES if not arguments.case or case.name in arguments.case]
    if arguments.quick:
        cases = [case.quick() for case in cases]
    if arguments.scale is not None:
        cases = [case.scaled(arguments.scale) for case in cases]
    if arguments.rounds is not None:
        cases = [replace(case, rounds=max(1, arguments.rounds)) for case in cases]
    return cases


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def _run(arguments: argparse.Namespace) -> list[Comparison]:
    places = Places(arguments.memory, arguments.disk)
    keep_out = frozenset(arguments.without)
    return [
        await run_case(case, places, say=_say, keep_out=keep_out) for case in _chosen(arguments)
    ]


def main() -> int:
    """Run what the command line asks for; 1 when a benchmark could not be carried out."""
    arguments = _arguments()
    # Whoever ends us finds nothing left either: cases remove what they made as they are left.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        comparisons = asyncio.run(_run(arguments))
    except BenchmarkError as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    print(as_text(comparisons))
    output: Path | None = arguments.output
    if output is None and not (arguments.quick or arguments.case):
        output = _DOCUMENT
    if output is not None and str(output) != "-":
        command = " ".join(["python -m benchmarks", *sys.argv[1:]])
        text = as_markdown(comparisons, machine(arguments.memory, arguments.disk), command)
        output.write_text(text, encoding="utf-8")
        _say(f"written: {output}")
    return 0


sys.exit(main())
