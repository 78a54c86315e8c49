"""`baton trash`: what a rule or a conflict put aside, at one root of one worker."""

import asyncio
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated

import typer

from baton.v1.common_pb2 import (
    ListTrashRequest,
    PurgeTrashRequest,
    RestoreTrashRequest,
    TrashedEntry,
)
from cli.command import Call, remote
from cli.exits import CommandFailed, Exit
from cli.group import new_group
from cli.output import human_bytes, human_time, print_json, print_line, print_table, say
from coordinator.members import parse_member
from coordinator.units import Duration
from wire.orders import Member

app = new_group()

Root = Annotated[str, typer.Argument(metavar="WORKER:ROOT", help="Whose trash.")]
Date = Annotated[str, typer.Option("--date", metavar="YYYY-MM-DD", help="Of this day only.")]

_SHOWN = 20


@remote(app, "list")
async def list_(
    call: Call,
    root: Annotated[
        str, typer.Argument(metavar="WORKER:ROOT[/PATH]", help="Whose trash; of PATH only.")
    ],
    date: Date = "",
) -> None:
    """What lies in the trash: the latest day first."""
    member = _member(root)
    request = ListTrashRequest(worker=member.worker, root=member.root, date=date, below=member.path)
    answers = call.client.stream(call.client.stub.ListTrash, request)
    entries = [entry async for answer in answers for entry in answer.entries]
    call.show([_plain(entry) for entry in entries], lambda: _print(entries))


@remote(app, "restore", repeatable=False)
async def restore(
    call: Call,
    root: Root,
    path: Annotated[str, typer.Argument(metavar="PATH", help="As seen from the root.")],
    date: Date = "",
    to: Annotated[
        str | None, typer.Option("--to", metavar="PATH", help="Bring it back there instead.")
    ] = None,
) -> Exit | None:
    """Bring back the latest version of a file, or all that a directory held.

    Nothing is ever put over anything. A mirror that writes there removes again what its source does
    not have.
    """
    member = _root(root)
    request = RestoreTrashRequest(
        worker=member.worker,
        root=member.root,
        path=_bytes(path),
        date=date,
        to=None if to is None else _bytes(to),
    )
    answer = await call.client.ask(call.client.stub.RestoreTrash, request)
    left = [_text(one) for one in answer.left]
    if call.wants_json:
        paths = [_text(one) for one in answer.paths]
        print_json(
            {
                "date": answer.date or None,
                "restored": answer.restored,
                "paths": paths,
                "in_the_way": answer.in_the_way,
                "left": left,
            }
        )
    else:
        for one in answer.paths[:_SHOWN]:
            print_line(_text(one))
        if answer.restored > _SHOWN:
            print_line(f"and {answer.restored - _SHOWN} more")
    for place in left[:_SHOWN]:
        say(f"left in the trash, since something is there: {place}")
    if answer.in_the_way > _SHOWN:
        say(f"and {answer.in_the_way - _SHOWN} more")
    return Exit.FAILED if answer.in_the_way else None


@remote(app, "purge", repeatable=False)
async def purge(
    call: Call,
    root: Root,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="AGE", help="Only days that ended so long ago: 30d."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove what lies in the trash, for good."""
    member = _root(root)
    age_s = None if older_than is None else _age_s(older_than)
    if not yes:
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        _confirm(
            f"remove the trash of {root}" + (f" older than {older_than}" if older_than else "")
        )
        call.client.ends_at += loop.time() - asked_at  # whoever is asked may take his time
    request = PurgeTrashRequest(worker=member.worker, root=member.root, older_than_s=age_s)
    answer = await call.client.ask(call.client.stub.PurgeTrash, request)
    days = list(answer.days)
    if not days:
        say("there was nothing to remove")
    call.show({"days": days}, lambda: _print_lines(f"removed {day}" for day in days))


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print_line(line)


def _confirm(what: str) -> None:
    if not sys.stdin.isatty():
        raise CommandFailed(Exit.USAGE, f"nobody to ask whether to {what}: say --yes")
    sys.stderr.write(f"{what}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise CommandFailed(Exit.FAILED, "nothing was removed")


def _age_s(text: str) -> int:
    try:
        return int(Duration.parse(text).seconds)
    except ValueError as error:
        raise CommandFailed(Exit.USAGE, f"--older-than: {error}") from error


def _member(text: str) -> Member:
    try:
        return parse_member(text)
    except ValueError as error:
        raise CommandFailed(Exit.USAGE, f"WORKER:ROOT: {error}") from error


def _root(text: str) -> Member:
    member = _member(text)
    if member.path:
        raise CommandFailed(
            Exit.USAGE,
            f"WORKER:ROOT: {text} has a path: name the root, and the path after a space",
        )
    return member


def _plain(entry: TrashedEntry) -> dict[str, object]:
    return {
        "date": entry.date,
        "path": _text(entry.path),
        "kind": entry.kind,
        "size": entry.size,
        "mtime": _time(entry.mtime_ns),
    }


def _print(entries: list[TrashedEntry]) -> None:
    print_table(
        ("date", "kind", "size", "modified", "path"),
        (
            (
                entry.date,
                entry.kind,
                human_bytes(entry.size) if entry.kind == "file" else None,
                human_time(_time(entry.mtime_ns)),
                _text(entry.path),
            )
            for entry in entries
        ),
    )


def _time(mtime_ns: int) -> str | None:
    """Write a file's time; None for one that no calendar has."""
    try:
        return datetime.fromtimestamp(mtime_ns / 1e9, UTC).isoformat()
    except (OverflowError, ValueError, OSError):
        return None


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _bytes(path: str) -> bytes:
    return path.rstrip("/").encode("utf-8", "surrogateescape")
