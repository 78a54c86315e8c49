"""What travels in a job whose file says nothing of metadata, and what when it says more."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.cluster.harness import Scene
from tests.cluster.test_main_path import is_nothing, job_of
from tests.cluster.trees import T0, put


def rsync_says_of_all(source: Path, target: Path) -> str:
    """What rsync would still change, with everything that it can compare."""
    command = ["rsync", "-aHAXni", "--delete", "--checksum", "--exclude=.baton"]
    return subprocess.run(
        [*command, f"{source}/", f"{target}/"], check=True, capture_output=True, text=True
    ).stdout


def make(source: Path) -> None:
    put(source / "a", "linked", T0)
    (source / "d").mkdir()
    os.link(source / "a", source / "d" / "a2")
    os.setxattr(source / "a", "user.tag", b"value")
    os.setxattr(source / "d", "user.tag", b"of a directory")
    (source / "l").symlink_to("a")
    with (source / "sparse").open("wb") as file:
        file.truncate(8 << 20)
        file.seek(4 << 20)
        file.write(b"x" * 5_000)
    if shutil.which("setfacl"):
        for path, rule in ((source / "a", "u:games:rw"), (source / "d", "d:u:games:rwx")):
            subprocess.run(["setfacl", "-m", rule, path], check=True)
    if os.geteuid() == 0:
        os.chown(source / "sparse", 1, 2)
        os.lchown(source / "l", 3, 4)
    os.utime(source / "d", ns=(T0, T0))


@pytest.mark.timeout(180)
async def test_a_job_that_says_nothing_carries_everything_but_special_files(steady: Scene) -> None:
    source, target = await job_of(steady, "kinds")
    make(source)
    os.mkfifo(source / "pipe")
    run = await steady.run_ok("kinds")
    assert [(e["path"], e["what"]) for e in run["errors"]] == [("pipe", "skipped")]
    assert (target / "a").stat().st_ino == (target / "d" / "a2").stat().st_ino
    assert (target / "sparse").stat().st_blocks * 512 < 1 << 20
    assert not (target / "pipe").exists()
    (source / "pipe").unlink()
    assert (await steady.run_ok("kinds"))["files_updated"] == 1, "the directory's time"
    assert is_nothing(await steady.run_ok("kinds"))
    if shutil.which("rsync"):
        assert rsync_says_of_all(source, target) == ""
    os.setxattr(source / "a", "user.tag", b"other")
    run = await steady.run_ok("kinds")
    assert (run["files_copied"], run["files_updated"]) == (0, 1)
    assert os.getxattr(target / "d" / "a2", "user.tag") == b"other"


@pytest.mark.timeout(180)
async def test_a_job_can_ask_for_more_and_for_less(steady: Scene) -> None:
    source, target = await job_of(
        steady,
        "kinds-more",
        metadata={"devices": True, "setuid": True, "symlinks": "inside", "xattrs": False},
    )
    make(source)
    os.mkfifo(source / "pipe", 0o640)
    put(source / "su", "#!", T0, 0o4755)
    (source / "out").symlink_to("/etc/passwd")
    run = await steady.run_ok("kinds-more")
    assert [(e["path"], e["what"]) for e in run["errors"]] == [("out", "skipped")]
    assert stat.S_ISFIFO((target / "pipe").lstat().st_mode)
    assert stat.S_IMODE((target / "su").stat().st_mode) == 0o4755
    assert "out" not in os.listdir(target)
    assert [n for n in os.listxattr(target / "a") if n.startswith("user.")] == []
    assert is_nothing(await steady.run_ok("kinds-more"))
