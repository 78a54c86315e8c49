import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.output import (
    human_age,
    human_bytes,
    human_time,
    print_fields,
    print_json,
    print_table,
    safe,
)


@dataclass(frozen=True)
class Thing:
    name: str
    parts: tuple[str, ...]


def test_one_document_with_lone_surrogates_as_escapes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_json([Thing("caf\udce9", ("a",))])
    out = capsys.readouterr().out
    assert json.loads(out) == [{"name": "caf\udce9", "parts": ["a"]}]
    assert out.isascii()


@given(st.text(st.characters(exclude_categories=[])))
def test_a23_nothing_steers_a_terminal(text: str) -> None:
    shown = safe(text)
    assert shown.isprintable()
    shown.encode("utf-8")


def test_a23_escapes_say_which_byte_it_was() -> None:
    assert safe("a\x1b[31m\n\x9b\udcff\u202e") == r"a\x1b[31m\x0a\x9b\xff\u202e"


def test_tables_in_a_pipe_are_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "reason"), [("j", "x" * 500), ("[bold]k[/]", None)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].rstrip().endswith("x" * 500)
    assert "[bold]k[/]" in lines[2]


def test_fields_without_a_value_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields({"name": "j", "reason": "", "owner": None, "count": 0})
    assert capsys.readouterr().out.splitlines() == ["name   j", "count  0"]


def test_numbers_for_people() -> None:
    assert [human_bytes(n) for n in (0, 999, 1500, 2e9)] == ["0 B", "999 B", "1.5 kB", "2.0 GB"]
    ages = [human_age(n) for n in (None, 0.04, 59, 60, 3_700, 90_000)]
    assert ages == ["?", "0.0 s", "59 s", "1 m", "1 h 1 m", "1 d 1 h"]
    assert human_time(None) == "-"
    assert human_time("2026-01-01T00:00:00Z")[:4] in {"2025", "2026"}
