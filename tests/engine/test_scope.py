"""Scopes as values: what they cover, however they were put together, and how they travel."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncengine.errors import MalformedFrame
from syncengine.names import order_key, parent_of
from syncengine.scope import MAX_PATHS, Scope, ScopePath

NAMES = st.sampled_from([b"a", b"b", b"a.b", b"a-", b"\xff"])
PATHS = st.lists(NAMES, max_size=4).map(b"/".join)
PARTS = st.lists(st.tuples(PATHS, st.booleans()), max_size=8)


def _covers(parts: list[tuple[bytes, bool]], path: bytes) -> bool:
    """Say by the definition alone whether a path is covered."""
    return any(
        path == part or (is_deep and (not part or path.startswith(part + b"/")))
        for part, is_deep in parts
    )


@given(PARTS, PATHS)
def test_a_scope_covers_what_its_parts_do(parts: list[tuple[bytes, bool]], path: bytes) -> None:
    """However paths lie in each other, a path is covered as the plain definition says."""
    assert Scope.of(parts).covers(path) == _covers(parts, path)


@given(PARTS, PARTS)
def test_union_and_normal_form(
    one: list[tuple[bytes, bool]], two: list[tuple[bytes, bool]]
) -> None:
    """Put together in any way it is the same scope, in tree order, nothing named twice."""
    both = Scope.of(one) | Scope.of(two)
    assert both == Scope.of([*two, *one]) == Scope.of(both)
    assert hash(both) == hash(Scope.of([*two, *one]))
    keys = [order_key(part.path) for part in both]
    assert keys == sorted(set(keys))
    for part in both:
        others = [other for other in both if other != part]
        assert not _covers([(at, deep) for at, deep in others], part.path)


@given(PARTS)
def test_what_a_scan_looks_at(parts: list[tuple[bytes, bool]]) -> None:
    """Every path of the scope can be come to from the top, and nothing else is named."""
    scope = Scope.of(parts)
    wanted = scope.wanted()
    for path, is_deep in scope:
        at = path
        while at:
            names = wanted[parent_of(at)]
            assert names is not None
            assert at.rpartition(b"/")[2] in names
            at = parent_of(at)
        assert (wanted[path] is None) == is_deep
    for directory, names in wanted.items():
        for name in names or ():
            below = b"/".join(filter(None, [directory, name]))
            assert any(part.path == below or part.path.startswith(below + b"/") for part in scope)


@given(PARTS)
def test_there_and_back(parts: list[tuple[bytes, bool]]) -> None:
    """What travels is what arrives, in one piece or in several."""
    scope = Scope.of(parts)
    assert Scope.decode(scope.encode()) == scope
    pieces = list(scope.pieces(paths=2, size=40))
    assert all(len(piece) <= 2 for piece in pieces)
    together = Scope()
    for piece in pieces:
        together |= piece
    assert together == scope
    assert sum(map(len, pieces)) == len(scope)


def test_the_whole_tree_and_nothing() -> None:
    """The whole tree swallows all else; nothing covers nothing."""
    whole = Scope(deep=[b"", b"a"], shallow=[b"b"])
    assert whole == Scope.whole()
    assert whole.is_whole
    assert list(whole) == [ScopePath(b"", True)]
    assert Scope().is_empty
    assert not Scope().covers(b"")
    assert not list(Scope().pieces())
    assert Scope(shallow=[b""]).covers(b"")
    assert not Scope(shallow=[b""]).covers(b"a")
    assert whole.part_at(b"x/y") == ScopePath(b"x/y", True)
    assert Scope(shallow=[b"d"]).part_at(b"d/x") == ScopePath(b"d/x", False)


def test_a_scope_too_large_to_travel() -> None:
    """It is refused where it is made, and goes in pieces instead."""
    many = Scope(shallow=[b"%d" % number for number in range(MAX_PATHS + 1)])
    with pytest.raises(ValueError, match="more than"):
        many.encode()
    assert [len(piece) for piece in many.pieces()] == [MAX_PATHS, 1]
    long = Scope(shallow=[b"/".join([b"%03d" % number * 80] * 60) for number in range(100)])
    with pytest.raises(ValueError, match="bytes"):
        long.encode()
    assert all(piece.encode() for piece in long.pieces())


@given(st.binary(max_size=60))
def test_noise_is_refused(noise: bytes) -> None:
    """Whatever arrives is a scope of allowed paths, or MalformedFrame."""
    try:
        scope = Scope.decode(noise)
    except MalformedFrame:
        return
    assert Scope.decode(scope.encode()) == scope


@pytest.mark.parametrize(
    "path", [b"/etc", b"..", b"a/../..", b"a//b", b".baton", b"a/.baton~x", b"a\0", b"x" * 256]
)
@pytest.mark.parametrize("at", [0, 1])
def test_forbidden_paths_are_refused(path: bytes, at: int) -> None:
    """A peer names nothing outside the top, and nothing of Baton's own (I14)."""
    packed = msgspec.msgpack.encode(([path], []) if at == 0 else ([], [path]))
    with pytest.raises(MalformedFrame):
        Scope.decode(packed)
