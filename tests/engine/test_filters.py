"""Filters against git itself, and in a scan."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from syncengine.filters import BadFilter, Filters, read_pattern
from syncengine.globs import translate
from syncengine.listing import decode_entries, encode_entries
from syncengine.model import Kind, Limits, Problem
from syncengine.scan import scan
from syncengine.scope import Scope
from syncengine.tree import Tree
from tests.engine.test_properties import TREES, two
from tests.engine.trees import FAST, T0, Pair, Spec, grow, picture

NOW = T0 + 10 * 86_400 * 10**9


def excluded(
    root: Path,
    lines: list[str],
    limits: Limits | None = None,
    scope: Scope | None = None,
) -> set[str]:
    """The paths that a scan gives out as excluded; every other one must be whole."""
    filters = Filters(lines, limits or Limits(), now_ns=NOW)
    problems: list[Problem] = []
    with Tree.open(os.fsencode(root), read_only=True) as tree:
        found = scan(tree, problems=problems, member="m", filters=filters, scope=scope)
        entries = list(decode_entries(encode_entries(found)))
    assert problems == []
    return {os.fsdecode(entry.path) for entry in entries if entry.kind is Kind.EXCLUDED}


FILES = [
    *("a", "b.tmp", "keep.tmp", "cache/x", "cache/y.tmp", "sub/cache/x", "sub/a", "sub/b.tmp"),
    *("sub/deep/a", "sub/deep/deeper/b", "sub/deep/deeper/keep.tmp", "build/out/1.log"),
    *("build/a.o", "build/x/a.o", "[x]", "a b", "a ", "#a", "!a", "\\a", "éé.tmp", "x-y"),
    *("link", "b", "c1", "c9", "cA", "sub/c1", "aaaaab", "foo/foo/foo", "foo/bar/foo/z", "z\n.tmp"),
    *("n\nl/x.tmp", "n\nl/y", "**", "sub/*", "a.b.c", "ab", "abc", "sub/ab/abc", "sub/abc/ab"),
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    root = tmp_path_factory.mktemp("repository")
    for name in FILES:
        path = root / name
        if name in {"a", "b"} or not path.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    (root / "sub/link").symlink_to("deep")
    subprocess.run(["git", "init", "-q", str(root)], check=True, capture_output=True)
    shutil.move(root / ".git", tmp := tmp_path_factory.mktemp("git") / "git")
    (root.parent / "where").write_text(str(tmp))
    return root


def git_says(root: Path, lines: list[str]) -> set[str]:
    """What git ignores, itself or for the sake of a directory that it lies in."""
    git = (root.parent / "where").read_text()
    (Path(git) / "info/exclude").write_bytes("\n".join(lines).encode())
    paths = [
        os.path.relpath(os.path.join(folder, name), root)
        for folder, folders, files in os.walk(root)
        for name in [*folders, *files]
    ]
    answer = subprocess.run(
        [
            *("git", "-c", "core.excludesFile=", "--git-dir", git, "--work-tree", str(root)),
            *("check-ignore", "--no-index", "-z", "--stdin"),
        ],
        input=os.fsencode("\0".join(paths)),
        cwd=root,
        capture_output=True,
        check=False,
    )
    assert answer.returncode in {0, 1}, answer.stderr
    return {os.fsdecode(name) for name in answer.stdout.split(b"\0") if name}


def only_topmost(paths: set[str]) -> set[str]:
    return {p for p in paths if not any(p.startswith(f"{other}/") for other in paths)}


def check_alike(root: Path, lines: list[str]) -> None:
    theirs = git_says(root, lines)
    assert excluded(root, lines) == only_topmost(theirs), lines
    filters = Filters(lines, Limits(), now_ns=NOW)
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            kind = Kind.DIRECTORY if name in folders and not os.path.islink(path) else Kind.FILE
            shown = os.path.relpath(path, root)
            assert filters.hide(os.fsencode(shown), kind) is (shown in theirs), (lines, shown)


@pytest.mark.parametrize(
    "lines",
    [
        ["*.tmp", "/cache/", "!keep.tmp"],
        ["cache"],
        ["cache/", "!cache/x"],
        ["cache/*", "!cache/x"],
        ["/*", "!/sub", "/sub/*", "!/sub/deep"],
        ["*", "!*/", "!*.tmp"],
        ["**", "!a"],
        ["sub/**"],
        ["sub/**", "!sub/deep/", "!sub/deep/a"],
        ["**/deep/**"],
        ["sub/**/b"],
        ["sub/**/keep.tmp", "!sub/deep/deeper/*"],
        ["**/foo"],
        ["foo/**/foo"],
        ["**/foo/**/z"],
        ["/foo/*/foo"],
        ["deep/"],
        ["deep/a"],
        ["/deep"],
        ["c[0-9]"],
        ["c[!0-9]"],
        ["c[^0-9]"],
        ["c[[:digit:]]"],
        ["c[[:upper:]0-5]"],
        ["[[]x]"],
        ["\\[x]"],
        ["[]x[]*"],
        ["x[+--]y"],
        ["\\#a", "\\!a"],
        ["#a"],
        ["a\\ ", "a "],
        ["a\\ b"],
        ["\\\\a"],
        ["\\*\\*"],
        ["sub/\\*"],
        ["a*a*b"],
        ["a?c", "?b"],
        ["*b*c*"],
        ["link"],
        ["link/"],
        ["*.b.*"],
        ["build/**/*.o"],
        ["build/**/", "!build/x/"],
        ["**/"],
        ["*/"],
        ["***", "!b"],
        ["a**b"],
        ["s*/a"],
        ["!a", "a", "!b"],
        ["z*"],
        [],
    ],
)
def test_patterns_mean_what_git_says(repository: Path, lines: list[str]) -> None:
    check_alike(repository, lines)


pieces = st.sampled_from(
    [
        *("a", "b", "c", "foo", "sub", "deep", "x", "cache", "*", "**", "?", "*.tmp", "a*", "*b"),
        *("[a-c]", "[!a]", "keep.tmp", "f?o", "*a*", "build", "[[:alpha:]]*", "\\a", "*.o"),
    ]
)
patterns = st.builds(
    lambda negated, anchored, parts, closing: negated + anchored + "/".join(parts) + closing,
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "/"]),
    st.lists(pieces, min_size=1, max_size=4),
    st.sampled_from(["", "", "/"]),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lines=st.lists(patterns, min_size=1, max_size=6))
def test_any_patterns_mean_what_git_says(repository: Path, lines: list[str]) -> None:
    check_alike(repository, lines)


def test_names_that_are_no_utf_8_match_character_by_character(tmp_path: Path) -> None:
    for name in (b"caf\xe9.tmp", b"caf\xe9", b"d\xff/x", b"ok"):
        path = os.fsencode(tmp_path) + b"/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb"):
            pass
    assert excluded(tmp_path, ["*.tmp"]) == {"caf\udce9.tmp"}
    assert excluded(tmp_path, ["caf?"]) == {"caf\udce9"}
    assert excluded(tmp_path, ["d?/x"]) == {"d\udcff/x"}
    assert excluded(tmp_path, ["/d[!a-z]/"]) == {"d\udcff"}


def pair_of(base: Path, source: Spec, target: Spec, lines: list[str]) -> Pair:
    grow(base / "source", source)
    grow(base / "target", target)
    pair = Pair(base / "source", base / "target", FAST)
    pair.filters = lambda: Filters(lines, Limits(), now_ns=NOW)
    return pair


def test_a_mirror_leaves_alone_what_is_filtered_at_either_side(tmp_path: Path) -> None:
    pair = pair_of(
        tmp_path,
        {"a.tmp": b"1", "keep.tmp": b"2", "cache/x": b"3", "d/f": b"4"},
        {"b.tmp": b"5", "cache/y": b"6", "old/c.tmp": b"7", "old/f": b"8", "gone": b"9"},
        ["*.tmp", "/cache/", "!keep.tmp"],
    )
    result = pair.run()
    assert result.problems == []
    assert result.counts.files_deleted == 2
    shown = {os.fsdecode(path) for path, what in picture(pair.target).items() if what[0] == "file"}
    assert shown == {"keep.tmp", "d/f", "b.tmp", "cache/y", "old/c.tmp"}
    again = pair.run()
    assert (again.counts.files_copied, again.counts.files_deleted) == (0, 0)


def test_no_delete_comes_from_a_change_of_filters(tmp_path: Path) -> None:
    """I8, I11: what is hidden stays everywhere; what is shown again is compared as if new."""
    tree: Spec = {"a.tmp": b"1", "d/b.tmp": b"2", "d/c": b"3"}
    pair = pair_of(tmp_path, tree, {}, [])
    pair.run()
    pair.filters = lambda: Filters(["*.tmp"], Limits(), now_ns=NOW)
    (pair.source / "a.tmp").unlink()
    (pair.source / "d/b.tmp").write_bytes(b"changed")
    result = pair.run()
    assert (result.counts.files_copied, result.counts.files_deleted) == (0, 0)
    assert (pair.target / "a.tmp").read_bytes() == b"1"
    assert (pair.target / "d/b.tmp").read_bytes() == b"2"
    pair.filters = lambda: Filters([], Limits(), now_ns=NOW)
    result = pair.run()
    # Of a mirror, what the source does not have is extra: that is its rule, no change of filters.
    assert (result.counts.files_copied, result.counts.files_deleted) == (1, 1)
    pair.check_equal()


@settings(max_examples=40, deadline=None)
@given(
    source=TREES,
    target=TREES,
    lines=st.lists(patterns.filter(lambda line: not line.startswith("!")), min_size=1, max_size=3),
)
@example(source={}, target={"b": ("link", "a", 0)}, lines=["b"])
def test_i11_whatever_is_filtered_is_the_same_after_a_run(
    source: dict[str, object], target: dict[str, object], lines: list[str]
) -> None:
    with two(source, target, 1) as pair:
        covers = Filters(lines, Limits(), now_ns=NOW)
        pair.filters = lambda: covers
        before = [picture(root) for root in (pair.source, pair.target)]
        assert pair.run().retry == []
        after = [picture(root) for root in (pair.source, pair.target)]
        assert after[0] == before[0]

        def is_hidden(path: bytes, what: tuple[object, ...]) -> bool:
            return covers.hide(path, Kind.DIRECTORY if what[0] == "dir" else Kind.FILE)

        for path, what in before[1].items():
            if path != b"." and is_hidden(path, what):
                there = after[1][path]
                assert there[:2] == what[:2]
                assert what[0] == "dir" or there == what
        made = after[1].keys() - before[1].keys()
        assert not any(is_hidden(path, after[1][path]) for path in made)
        with pair.preview() as plan:
            assert plan.is_empty


def test_what_is_hidden_is_neither_entered_nor_looked_at(tmp_path: Path) -> None:
    grow(tmp_path, {"secret/x/y": b"1", "a/secret": b"2", "a/b": b"3"})
    problems: list[Problem] = []
    with Tree.open(os.fsencode(tmp_path), read_only=True) as tree:
        filters = Filters(["secret"], Limits(), now_ns=NOW)
        shown = [
            (e.path, e.kind) for e in scan(tree, problems=problems, member="m", filters=filters)
        ]
    assert shown == [
        (b"", Kind.DIRECTORY),
        (b"a", Kind.DIRECTORY),
        (b"a/b", Kind.FILE),
        (b"a/secret", Kind.EXCLUDED),
        (b"secret", Kind.EXCLUDED),
    ]


def test_a_scan_in_a_scope_is_filtered_alike(tmp_path: Path) -> None:
    grow(tmp_path, {"cache/x": b"1", "a/b.tmp": b"2", "a/b": b"3", "c.tmp": b""})
    lines = ["*.tmp", "/cache/"]
    assert excluded(tmp_path, lines, scope=Scope(deep=[b"cache/x"], shallow=[b"a/b.tmp"])) == {
        "cache",
        "a/b.tmp",
    }
    assert excluded(tmp_path, lines, scope=Scope(deep=[b"a"], shallow=[b"gone.tmp"])) == {"a/b.tmp"}


def test_limits_of_size_and_age_hold_for_regular_files_only(tmp_path: Path) -> None:
    grow(tmp_path, {"empty": b"", "small": b"1", "large": b"x" * 100, "d": None, "link": "small"})
    day = 86_400.0
    assert excluded(tmp_path, [], Limits(min_size=1)) == {"empty"}
    assert excluded(tmp_path, [], Limits(max_size=99)) == {"large"}
    assert excluded(tmp_path, [], Limits(min_size=1, max_size=100)) == {"empty"}
    os.utime(tmp_path / "small", ns=(NOW, NOW - int(day * 1e9)))
    os.utime(tmp_path / "large", ns=(NOW, NOW + int(day * 1e9)))
    assert excluded(tmp_path, [], Limits(min_age_s=day)) == {"large"}
    assert excluded(tmp_path, [], Limits(min_age_s=day + 1)) == {"large", "small"}
    assert excluded(tmp_path, [], Limits(max_age_s=day)) == {"empty"}
    assert excluded(tmp_path, [], Limits(max_age_s=day - 1)) == {"empty", "small"}
    filters = Filters(["*.tmp"], Limits(max_size=9), now_ns=NOW)
    assert filters.hide(b"a/b", Kind.FILE, size=10)
    assert not filters.hide(b"a/b", Kind.FILE, size=9)
    assert not filters.hide(b"a/b", Kind.DIRECTORY, size=10)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("[ab", "["),
        ("foo\\", "backslash"),
        ("!", "names"),
        ("/", "names"),
        ("a//b", "single slashes"),
        ("./a", "without ./"),
        ("a/../b", "../"),
        ("a\nb", "one pattern an item"),
        ("a\0b", "one pattern an item"),
        ("\udcff*", "put ?"),
        ("[z-a]", "empty"),
        ("[[:foo:]]", "no class"),
        ("a\\/b", "backslash"),
    ],
)
def test_what_can_match_nothing_is_refused_with_what_would_be_right(line: str, hint: str) -> None:
    with pytest.raises(BadFilter) as caught:
        read_pattern(line)
    assert hint in str(caught.value)
    assert str(caught.value).isprintable()


def test_comments_and_blank_lines_say_nothing() -> None:
    assert [read_pattern(line) for line in ("", "   ", "# all of it")] == [None] * 3


def test_a_name_of_many_repetitions_costs_no_more_than_another() -> None:
    expression = translate("*a*a*a*a*a*a*a*a*b")
    # Each star but the last never tries again: without that, this would take longer than we live.
    assert expression.count("(?>") == 8
    filters = Filters(["*a*a*a*a*a*a*a*a*b"], Limits(), now_ns=NOW)
    assert not filters.hide(b"a" * 250, Kind.FILE)
    assert filters.hide(b"a" * 250 + b"b", Kind.FILE)
