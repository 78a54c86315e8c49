"""`python -m tests.simulation`: run seeds on every core, or one again with all that happened."""

import argparse
import contextlib
import gc
import itertools
import logging
import os
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import structlog

from tests.simulation.broken import BROKEN
from tests.simulation.plots import PLOTS
from tests.simulation.simulate import Story, simulate

_CHUNK = 25
_TOLD = 80
"""How many lines of the story of a violation are shown."""


@dataclass(frozen=True, slots=True)
class Found:
    """A seed that shows a violation."""

    seed: int
    what: str
    story: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sum:
    """What some seeds came to."""

    seeds: int
    checks: int
    steps: int
    simulated_s: float
    cpu_s: float
    found: tuple[Found, ...]


def quiet() -> None:
    """Have the program's own log say nothing: ten thousand clusters have much to say."""
    silent = structlog.make_filtering_bound_logger(logging.CRITICAL)
    structlog.configure(wrapper_class=silent, cache_logger_on_first_use=True)
    gc.freeze()
    gc.disable()  # between seeds


def run_one(seed: int, broken: str | None = None, plot: str | None = None) -> Story:
    """Run one seed, or a plot on it, with a promise broken on purpose if that is asked for."""
    # In memory where there is such a place: coordinators keep a small file each.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with (
        tempfile.TemporaryDirectory(prefix="baton-simulation-", dir=memory) as state,
        BROKEN[broken]() if broken is not None else contextlib.nullcontext(),
    ):
        return simulate(seed, Path(state), None if plot is None else PLOTS[plot])


def _run_some(work: tuple[list[int], str | None, str | None]) -> Sum:
    seeds, broken, plot = work
    quiet()
    checks = steps = 0
    simulated_s = 0.0
    found = []
    began = _cpu_s()
    for seed in seeds:
        story = run_one(seed, broken, plot)
        checks += story.checks
        steps += story.steps
        simulated_s += story.simulated_s
        gc.collect()
        if story.violation is not None:
            found.append(Found(seed, str(story.violation), tuple(story.trace.lines(_TOLD))))
    return Sum(len(seeds), checks, steps, simulated_s, _cpu_s() - began, tuple(found))


def run_many(
    seeds: Iterable[int], processes: int, broken: str | None = None, plot: str | None = None
) -> Iterator[Sum]:
    """Run seeds in several processes; yield what they came to as they come."""
    iterator = iter(seeds)
    chunks = iter(lambda: list(itertools.islice(iterator, _CHUNK)), [])
    work = ((chunk, broken, plot) for chunk in chunks)
    if processes == 1:
        yield from map(_run_some, work)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(_run_some, work)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _seeds(text: str) -> range:
    """Read `N`, the first N seeds, or `A..B`, both included."""
    first, dots, last = text.partition("..")
    return range(int(first), int(last) + 1) if dots else range(int(first))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description="Simulate clusters that everything goes wrong in, and check what they promise.",
    )
    parser.add_argument("--seed", type=int, help="run this one, and tell all that happened")
    parser.add_argument("--seeds", type=_seeds, default=range(1000), help="N, or A..B [1000]")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--broken", choices=sorted(BROKEN), help="break a promise on purpose")
    parser.add_argument("--plot", choices=sorted(PLOTS), help="what happens, in place of faults")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at a violation")
    return parser.parse_args()


def _tell(seed: int, broken: str | None, plot: str | None) -> int:
    quiet()
    story = run_one(seed, broken, plot)
    print("\n".join(story.trace.lines()))
    print(
        f"seed {seed}: {story.violation or 'all promises held'}; "
        f"{story.checks} checks, {story.steps} steps, {story.simulated_s:.1f} s simulated"
    )
    print(f"digest {story.trace.digest()}")
    return 0 if story.violation is None else 1


def main() -> int:
    """Do what the command line says; 1 when a promise did not hold."""
    args = _parse()
    if args.seed is not None:
        return _tell(args.seed, args.broken, args.plot)
    began = time.monotonic()
    seeds = checks = steps = violations = 0
    simulated_s = cpu_s = 0.0
    for some in run_many(args.seeds, args.processes, args.broken, args.plot):
        seeds += some.seeds
        checks += some.checks
        steps += some.steps
        simulated_s += some.simulated_s
        cpu_s += some.cpu_s
        for found in some.found:
            violations += 1
            if violations == 1:
                print("\n".join(found.story))
            print(f"seed {found.seed}: {found.what}")
            again = ["python", "-m", "tests.simulation", "--seed", str(found.seed)]
            again += ["--broken", args.broken] if args.broken else []
            again += ["--plot", args.plot] if args.plot else []
            print(f"  all of it: {shlex.join(again)}")
        if violations and not args.keep_going:
            break
    print(
        f"{seeds} seeds, {violations} violations; {checks} checks, {steps} steps, "
        f"{simulated_s / 3600:.1f} h simulated in {time.monotonic() - began:.1f} s, "
        f"CPU {cpu_s:.1f} s, {1000 * cpu_s / max(seeds, 1):.1f} ms a seed"
    )
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
