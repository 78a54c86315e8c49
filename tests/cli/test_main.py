import time
from pathlib import Path
from typing import Any

import pytest

from wire.credentials import load_tls
from wire.identity import Identity, Role

GROUPS = ("up", "status", "watch", "doctor", "coordinator", "worker", "job", "run", "ca")


@pytest.mark.alone
async def test_help_is_quick_and_names_every_group(baton_process: Any) -> None:
    took = []
    for _ in range(3):
        began = time.monotonic()
        ended = await baton_process("--help")
        took.append(time.monotonic() - began)
        assert ended.code == 0
    assert all(f"\n  {group} " in ended.out for group in GROUPS)
    assert min(took) < 0.4


async def test_the_version_is_said(baton_process: Any) -> None:
    ended = await baton_process("--version")
    assert (ended.code, ended.out) == (0, "baton 0.1.0\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("job", "nonsense"),
        ("job", "show"),
        ("job", "show", "j", "-o", "yaml"),
        ("job", "show", "j", "--timeout", "0"),
        ("job", "apply"),
        ("worker", "add", "w1"),
        ("run", "list", "--limit", "0"),
        ("ca", "issue", "ca", "king", "x", "--out", "y"),
    ],
)
async def test_wrong_usage_is_2_with_nothing_on_standard_output(
    baton: Any, arguments: tuple[str, ...]
) -> None:
    ended = await baton(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "Error" in ended.err


async def test_a_ca_from_the_command_line(baton: Any, tmp_path: Path) -> None:
    ca, out = str(tmp_path / "ca"), tmp_path / "c1"
    assert (await baton("ca", "init", ca, "--cluster", "prod")).code == 0
    issue = ("ca", "issue", ca, "coordinator", "c1", "--out", str(out))
    ended = await baton(*issue, "--host", "c1.lan", "--host", "10.0.0.1")
    assert ended.code == 0
    assert "valid until" in ended.err
    assert load_tls(out).identity == Identity("prod", Role.COORDINATOR, "c1")
    again = await baton(*issue)
    assert again.code == 2
    assert "--replace" in again.err
    assert (await baton(*issue, "--replace")).code == 0
    assert (await baton("ca", "init", ca, "--cluster", "prod")).code == 2
