"""What commands print: one JSON document, or text for people. Nothing else writes there.

Texts from elsewhere (file names above all) reach no terminal with control characters in them.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coordinator.views import CoordinatorView


class Format(StrEnum):
    """What `-o` takes."""

    TEXT = "text"
    JSON = "json"


_STYLES = {
    "running": "green",
    "monitoring": "green",
    "succeeded": "green",
    "failed": "red",
    "blocked": "yellow",
    "waiting": "yellow",
}
_PIPE_WIDTH = 10_000


def print_json(value: Any) -> None:
    """Print one document; a byte of a name that is no UTF-8 is the escape of a lone surrogate."""
    print(json.dumps(_plain(value), indent=2, ensure_ascii=True, allow_nan=False))  # noqa: T201


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under headers, in columns."""
    console = _console()
    table = Table(box=SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
    for header in headers:
        table.add_column(header.upper(), no_wrap=not console.is_terminal)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console.print(table)


def print_fields(fields: Mapping[str, object]) -> None:
    """Print a name and a value on each line; what is None or empty is left out."""
    console = _console()
    shown = {name: value for name, value in fields.items() if value not in (None, "", (), [])}
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        console.print(Text(f"{name:<{width}}  ").append_text(_cell(value)), soft_wrap=True)


def print_line(text: str) -> None:
    """Print one line of a result."""
    _console().print(Text(safe(text)), soft_wrap=True)


def say(text: str) -> None:
    """Say something to whoever watches, on standard error."""
    sys.stderr.write("\n".join(safe(line) for line in text.split("\n")) + "\n")
    sys.stderr.flush()


def safe(text: str) -> str:
    """Escape what would steer a terminal or cannot be printed: controls, C1, lone surrogates."""
    return "".join(
        character if character.isprintable() else _escaped(character) for character in text
    )


def _escaped(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:
        return f"\\x{number - 0xDC00:02x}"  # a byte that is no UTF-8
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def human_bytes(count: float) -> str:
    """Write a size with a decimal unit."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} PB"


def human_age(seconds: float | None) -> str:
    """Write an age in its two largest units; `?` when it is not known."""
    if seconds is None:
        return "?"
    left = round(seconds)
    if left < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{left} s"
    parts = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))
    for place, (size, unit) in enumerate(parts):
        if left >= size:
            smaller, small_unit = parts[min(place + 1, 3)]
            rest = left % size // smaller
            return f"{left // size} {unit}" + (f" {rest} {small_unit}" if rest else "")
    return "0 s"


def human_time(text: str | None) -> str:
    """Write a time of the API in the zone of this machine, to the second; `-` for never."""
    if not text:
        return "-"
    try:
        return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return text


def _console() -> Console:
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=_PIPE_WIDTH)
    return console


def _cell(value: object) -> Text:
    text = "-" if value is None or value == "" else safe(str(value))
    return Text(text, style=_STYLES.get(text, ""))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def coordinator_state(view: CoordinatorView) -> str:
    """Return whether a coordinator takes jobs, and why not."""
    if view.draining:
        return "drains"
    return f"held down {view.held}" if view.held_until else "up"
