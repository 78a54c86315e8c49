"""Filters: which entries a job leaves alone, by the rules of gitignore, by size and by age.

Judged directory by directory, as a scan goes down: `Rules` are those that can match directly in one
directory, and directories alike share them. Nothing is re-included below an excluded directory,
since nobody looks there. Pure.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from syncengine.errors import EngineError
from syncengine.globs import literal_of, translate
from syncengine.model import Kind, Limits

_ANY_DEPTH = None
"""In the components of a pattern: `**`."""

_EVERYTHING = "*"
_FAR = 1 << 63


class BadFilter(EngineError, ValueError):
    """A line is no pattern that could match anything; the text says what would be right."""


OTHERS = 1
"""Files, symlinks and special files of a name are hidden."""
DIRECTORIES = 2
"""Directories of a name are hidden."""
ALWAYS = OTHERS | DIRECTORIES


@dataclass(frozen=True, slots=True)
class _Glob:
    """One component of a pattern; a name by which most patterns can be told without a regex."""

    expression: "re.Pattern[str]"
    literal: str | None

    def matches(self, name: str) -> bool:
        if self.literal is not None:
            return name == self.literal
        return self.expression.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class _Pattern:
    """One line, in components; `**` at any place but the last is `_ANY_DEPTH`."""

    components: tuple[_Glob | None, ...]
    is_negated: bool
    directories_only: bool

    @property
    def last(self) -> _Glob:
        glob = self.components[-1]
        assert glob is not None, "what ends with ** is read as **/*"
        return glob

    def start(self) -> frozenset[int]:
        """How many components have matched, at the top: with `**` in front there are choices."""
        return self._closure({0})

    def step(self, state: frozenset[int], name: str) -> frozenset[int]:
        """The same one directory further down."""
        after: set[int] = set()
        for place in state:
            component = self.components[place]
            if component is _ANY_DEPTH:
                after.add(place)
            elif place + 1 < len(self.components) and component.matches(name):
                after.add(place + 1)
        return self._closure(after)

    def _closure(self, places: set[int]) -> frozenset[int]:
        found = set(places)
        for place in sorted(places):
            at = place
            while self.components[at] is _ANY_DEPTH:
                at += 1
                found.add(at)
        return frozenset(found)

    def is_near(self, state: frozenset[int]) -> bool:
        """Whether only the last component is left to match: it can match right here."""
        return len(self.components) - 1 in state


State = tuple[frozenset[int], ...]


class Filters:
    """The filters and limits of one job, compiled; `top` begins. For one thread at a time."""

    def __init__(self, lines: Iterable[str], limits: Limits, *, now_ns: int) -> None:
        """Compile; `now_ns`, of the epoch, is when ages are counted from. Raises BadFilter."""
        self._patterns = tuple(
            pattern for line in lines if (pattern := read_pattern(line)) is not None
        )
        self._rules: dict[State, Rules] = {}
        self.bounds = Bounds.of(limits, now_ns)
        self.has_limits = limits != Limits()
        self.is_empty = not (self._patterns or self.has_limits)

    def top(self) -> "Rules":
        """Return the rules at the top of the tree."""
        return self._at(tuple(pattern.start() for pattern in self._patterns))

    def below(self, state: State, name: bytes) -> "Rules":
        """Return the rules in a directory `name`, one level below those of `state`."""
        text = _text(name)
        return self._at(
            tuple(
                pattern.step(one, text) if one else one
                for pattern, one in zip(self._patterns, state, strict=True)
            )
        )

    def _at(self, state: State) -> "Rules":
        rules = self._rules.get(state)
        if rules is None:
            if len(self._rules) > 10_000:
                self._rules.clear()
            near = [p for p, one in zip(self._patterns, state, strict=True) if p.is_near(one)]
            rules = self._rules[state] = Rules(self, state, near)
        return rules

    def exceeds(self, size: int, mtime_ns: int) -> bool:
        """Say whether a regular file is outside the limits of size and age."""
        smallest, largest, oldest_ns, youngest_ns = self.bounds
        return not (smallest <= size <= largest and oldest_ns <= mtime_ns <= youngest_ns)

    def hide(self, path: bytes, kind: Kind, size: int = 0, mtime_ns: int = 0) -> bool:
        """Say whether a path is hidden, or a directory that it lies in; for what is not there.

        A scan has no use for this: it does not come to what lies below a hidden directory.
        """
        if not path or self.is_empty:
            return False
        rules = self.top()
        *directories, last = path.split(b"/")
        for name in directories:
            if rules.hides(name) & DIRECTORIES:
                return True
            rules = rules.below(name)
        if kind is Kind.FILE and self.has_limits and self.exceeds(size, mtime_ns):
            return True
        form = DIRECTORIES if kind is Kind.DIRECTORY else OTHERS
        return bool(rules.hides(last) & form)


class Rules:
    """The patterns that can match directly in one directory."""

    __slots__ = (
        "_below",
        "_filters",
        "_literals",
        "_near",
        "_needles",
        "_state",
        "_suffixes",
        "_wild",
    )

    def __init__(self, filters: Filters, state: State, near: list[_Pattern]) -> None:
        self._filters = filters
        self._state = state
        self._near = near[::-1]
        """Last line first: the last one that matches decides."""
        self._below: dict[bytes, Rules] = {}
        literals: list[bytes] = []
        suffixes: list[bytes] = []
        wild: list[str] = []
        for glob in (pattern.last for pattern in near if not pattern.is_negated):
            if glob.literal is not None:
                literals.append(_bytes(glob.literal))
            elif (suffix := _suffix(glob)) is not None:
                suffixes.append(_bytes(suffix))
            else:
                wild.append(glob.expression.pattern)
        self._literals, self._suffixes = frozenset(literals), tuple(suffixes)
        self._wild = re.compile(f"/(?:{'|'.join(wild)})/") if wild else None
        self._needles = tuple(
            dict.fromkeys([b"/%b/" % name for name in literals] + [s + b"/" for s in suffixes])
        )
        """One of these is in the names, with slashes around them, where a plain pattern matches."""

    def below(self, name: bytes) -> "Rules":
        """Return the rules in the directory `name` of this one."""
        found = self._below.get(name)
        if found is None:
            found = self._filters.below(self._state, name)
            if found is not self and len(self._below) < 1_000:
                self._below[name] = found
        return found

    def hidden(self, names: list[bytes]) -> dict[bytes, int]:
        """Return, for those of the names that are hidden, in which forms: mostly none.

        Written so that a directory in which nothing matches costs a few calls, not a few a name.
        """
        if not self._near:
            return {}
        joined = b"/%b/" % b"/".join(names)
        for needle in self._needles:
            if needle in joined:
                break
        else:
            if self._wild is None or not self._wild.search(_text(joined)):
                return {}
        judged = [(name, self.hides(name)) for name in names if self._is_suspect(name)]
        return {name: forms for name, forms in judged if forms}

    def _is_suspect(self, name: bytes) -> bool:
        """Whether some pattern matches a name, be it one that a later line takes back."""
        return (
            name.endswith(self._suffixes)
            or name in self._literals
            or (self._wild is not None and self._wild.match(_text(b"/%b/" % name)) is not None)
        )

    def hides(self, name: bytes) -> int:
        """Say in which forms an entry of this name is hidden here."""
        text = _text(name)
        result, open_forms = 0, ALWAYS
        for pattern in self._near:
            forms = open_forms & (DIRECTORIES if pattern.directories_only else ALWAYS)
            if forms and pattern.last.matches(text):
                if not pattern.is_negated:
                    result |= forms
                open_forms &= ~forms
                if not open_forms:
                    break
        return result


class Bounds(NamedTuple):
    """The limits of one run as numbers that can be compared, both ends included."""

    smallest: int
    largest: int
    oldest_ns: int
    youngest_ns: int

    @classmethod
    def of(cls, limits: Limits, now_ns: int) -> "Bounds":
        """Count ages from `now_ns`, of the epoch."""
        return cls(
            smallest=limits.min_size or 0,
            largest=_FAR if limits.max_size is None else limits.max_size,
            oldest_ns=-_FAR if limits.max_age_s is None else now_ns - int(limits.max_age_s * 1e9),
            youngest_ns=_FAR if limits.min_age_s is None else now_ns - int(limits.min_age_s * 1e9),
        )


def read_pattern(line: str) -> _Pattern | None:
    """Read one line of a gitignore; None for a comment or a blank line. Raises BadFilter."""
    if any("\ud800" <= character <= "\udfff" for character in line):
        raise BadFilter(f"{line!a} has a byte that is no UTF-8: put ? in its place")
    if "\0" in line or "\n" in line:
        raise BadFilter(f"{line!a} has a NUL or a line feed: use one pattern an item")
    text = _without_trailing_spaces(line)
    if not text or text.startswith("#"):
        return None
    is_negated = text.startswith("!")
    text = text[is_negated:]
    directories_only = text.endswith("/")
    body = text[: len(text) - directories_only]
    is_anchored = "/" in body
    parts = body.removeprefix("/").split("/")
    for part in parts:
        _check_component(line, part)
    components: list[_Glob | None] = [] if is_anchored else [_ANY_DEPTH]
    for part in parts:
        if part != "**":
            components.append(_compiled(line, part))
        elif not components or components[-1] is not _ANY_DEPTH:
            components.append(_ANY_DEPTH)
    if components[-1] is _ANY_DEPTH:
        components.append(_compiled(line, _EVERYTHING))
    return _Pattern(tuple(components), is_negated, directories_only)


def _check_component(line: str, part: str) -> None:
    if not part:
        raise BadFilter(f"{line!r} matches nothing: write names, with single slashes between them")
    if part in {".", ".."}:
        raise BadFilter(
            f"{line!r} matches nothing: patterns begin at the top of the job, without ./ or ../"
        )


def _compiled(line: str, glob: str) -> _Glob:
    try:
        return _Glob(re.compile(translate(glob)), literal_of(glob))
    except ValueError as error:
        raise BadFilter(
            f"{line!r} {error}: escape it with a backslash if it is part of a name"
        ) from error


def _without_trailing_spaces(line: str) -> str:
    """Drop spaces at the end, except one that a backslash escapes."""
    bare = line.rstrip(" ")
    backslashes = len(bare) - len(bare.rstrip("\\"))
    return bare + " " if backslashes % 2 and bare != line else bare


_SUFFIX = re.compile(r"\[\^/\]\*(?P<rest>(?:[^\\.*+?\[\](){}|^$]|\\[^a-zA-Z0-9])+)", re.DOTALL)


def _suffix(glob: _Glob) -> str | None:
    """Return what a name must end with, for a glob like `*.tmp`; None for any other."""
    found = _SUFFIX.fullmatch(glob.expression.pattern)
    return None if found is None else re.sub(r"\\(.)", r"\1", found["rest"], flags=re.DOTALL)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
