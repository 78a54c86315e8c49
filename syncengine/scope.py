"""Scope: the part of a tree that a scan, a listing or a pass is about. Pure.

Paths, each *shallow* (this very entry) or *deep* (it and everything below it). The directories on the
way to a path are looked at too, and nothing else in them: their times change with what they hold, and
one that is missing at a target must be made. The whole tree is a scope: its top, deep.
"""

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import NamedTuple, Self

import msgspec

from syncengine.errors import MalformedFrame
from syncengine.names import check_path, order_key, parent_of

MAX_PATHS = 16_384
"""Paths of a scope that travels to another member."""

MAX_BYTES = 1024 * 1024
"""Bytes of such a scope, encoded: far below what one message may have."""

_PATH_OVERHEAD = 10


class ScopePath(NamedTuple):
    """One path of a scope."""

    path: bytes
    is_deep: bool
    """Everything below it, too."""


class Scope:
    """A set of paths, each shallow or deep; immutable.

    Normalised: of a path at or below a deep one nothing is kept, so `len`, `==` and the order of
    iteration (tree order) say what is covered, however it was put together.
    """

    __slots__ = ("_deep", "_shallow")

    def __init__(self, *, deep: Iterable[bytes] = (), shallow: Iterable[bytes] = ()) -> None:
        """Take paths relative to the top, which is b"" itself; raises MalformedFrame for bad ones."""
        kept: set[bytes] = set()
        for path in sorted(set(deep), key=len):
            check_path(path)
            if not _is_at_or_below(path, kept):
                kept.add(path)
        self._deep = frozenset(kept)
        beside: list[bytes] = []
        for path in set(shallow):
            check_path(path)
            if not _is_at_or_below(path, kept):
                beside.append(path)
        self._shallow = frozenset(beside)

    @classmethod
    def whole(cls) -> Self:
        """Return the scope of a whole tree."""
        return cls(deep=[b""])

    @classmethod
    def of(cls, paths: Iterable[ScopePath | tuple[bytes, bool]]) -> Self:
        """Return the scope of paths with whether they are deep; raises MalformedFrame."""
        deep: list[bytes] = []
        shallow: list[bytes] = []
        for path, is_deep in paths:
            (deep if is_deep else shallow).append(path)
        return cls(deep=deep, shallow=shallow)

    @property
    def is_whole(self) -> bool:
        """Whether this is the whole tree."""
        return b"" in self._deep

    @property
    def is_empty(self) -> bool:
        """Whether nothing is covered."""
        return not self._deep and not self._shallow

    @property
    def deep(self) -> frozenset[bytes]:
        """The deep paths; none of them lies below another."""
        return self._deep

    @property
    def shallow(self) -> frozenset[bytes]:
        """The paths of which just the entry counts; none is at or below a deep one."""
        return self._shallow

    def __iter__(self) -> Iterator[ScopePath]:
        """Iterate in tree order."""
        found = [ScopePath(path, True) for path in self._deep]
        found += [ScopePath(path, False) for path in self._shallow]
        return iter(sorted(found, key=lambda one: order_key(one.path)))

    def __len__(self) -> int:
        """How many paths it names."""
        return len(self._deep) + len(self._shallow)

    def __eq__(self, other: object) -> bool:
        """Whether the same is covered."""
        if not isinstance(other, Scope):
            return NotImplemented
        return self._deep == other._deep and self._shallow == other._shallow

    def __hash__(self) -> int:
        return hash((self._deep, self._shallow))

    def __repr__(self) -> str:
        return f"Scope(deep={sorted(self._deep)!r}, shallow={sorted(self._shallow)!r})"

    def covers(self, path: bytes) -> bool:
        """Say whether the entry at a path is in the scope, not merely on the way to what is."""
        return path in self._shallow or self.is_deep_at(path)

    def is_deep_at(self, path: bytes) -> bool:
        """Say whether everything below a path is in the scope, and the path itself."""
        return _is_at_or_below(path, self._deep)

    def part_at(self, path: bytes) -> ScopePath:
        """Return a path as it is to be looked at again: deep where this scope covers it deep."""
        return ScopePath(path, self.is_deep_at(path))

    def __or__(self, other: "Scope") -> "Scope":
        """Return what either covers."""
        return Scope(deep=self._deep | other._deep, shallow=self._shallow | other._shallow)

    def deepened(self, paths: Iterable[bytes]) -> "Scope":
        """Return this scope with these paths deep."""
        return Scope(deep=[*self._deep, *paths], shallow=self._shallow)

    def wanted(self) -> dict[bytes, set[bytes] | None]:
        """Return, by directory, the names to look at: None for all of them and all below.

        With the directories on the way; of a shallow path that is a directory, no names.
        """
        wanted: dict[bytes, set[bytes] | None] = dict.fromkeys(self._deep)
        for path in self._shallow:
            wanted.setdefault(path, set())
        for path in [*self._deep, *self._shallow]:
            at = path
            while at:
                at, _, name = at.rpartition(b"/")
                names = wanted.setdefault(at, set())
                if names is None or name in names:
                    break
                names.add(name)
        wanted.setdefault(b"", set())
        return wanted

    def pieces(self, *, paths: int = MAX_PATHS, size: int = MAX_BYTES) -> "Iterator[Scope]":
        """Yield scopes that may travel, in tree order, which together are this one.

        Mostly one; none for an empty scope.
        """
        held: list[ScopePath] = []
        room = size
        for one in self:
            needed = len(one.path) + _PATH_OVERHEAD
            if held and (len(held) == paths or needed > room):
                yield Scope.of(held)
                held, room = [], size
            held.append(one)
            room -= needed
        if held:
            yield Scope.of(held)

    def encode(self) -> bytes:
        """Return the scope as MessagePack; raises ValueError beyond the limits: take `pieces`."""
        if len(self) > MAX_PATHS:
            raise ValueError(f"a scope of {len(self)} paths, more than {MAX_PATHS}")
        packed = msgspec.msgpack.encode((sorted(self._deep), sorted(self._shallow)))
        if len(packed) > MAX_BYTES:
            raise ValueError(f"a scope of {len(packed)} bytes, more than {MAX_BYTES}")
        return packed

    @classmethod
    def decode(cls, packed: bytes) -> Self:
        """Read a scope that a peer sent; raises MalformedFrame for what no honest one sends."""
        if len(packed) > MAX_BYTES:
            raise MalformedFrame(f"a scope of {len(packed)} bytes")
        try:
            deep, shallow = msgspec.msgpack.decode(packed, type=tuple[list[bytes], list[bytes]])
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
            raise MalformedFrame(f"no scope: {error}") from error
        if len(deep) + len(shallow) > MAX_PATHS:
            raise MalformedFrame(f"a scope of {len(deep) + len(shallow)} paths")
        return cls(deep=deep, shallow=shallow)


def _is_at_or_below(path: bytes, deep: AbstractSet[bytes]) -> bool:
    """Say whether a path is one of `deep`, or below one."""
    if not deep:
        return False
    at = path
    while at not in deep:
        if not at:
            return False
        at = parent_of(at)
    return True
