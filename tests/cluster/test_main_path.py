"""What users do every day: apply, run, look, change, run again."""

import itertools
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from baton.v1 import coordinator_pb2 as pb
from tests.cluster.harness import Scene, paused, until
from tests.cluster.trees import T0, check_equal, grow, picture, put

RUN_FIELDS = {
    *("job", "id", "due", "started", "ended", "outcome", "attempts", "files_scanned"),
    *("files_copied", "files_updated", "files_deleted", "files_renamed", "bytes_copied"),
    *("bytes_sent", "conflicts", "errors"),
}
JOB_FIELDS = {
    *("name", "phase", "reason", "owner", "token", "lease_ttl_s", "owner_since", "next_due"),
    *("last_run", "last_success", "exposure_s", "generation"),
}
TEST_FIELDS = {
    *("name", "address", "identity", "group", "roots", "rtt_ms", "throughput_bytes_per_s")
}


STRANGE = (
    *(b"caf\xe9", b"\xff\xfe", b" ", b"a\nb", b"-n", b"\\", b"*", b"x" * 255),
    "ä".encode(),
)


async def job_of(scene: Scene, name: str, **more: Any) -> tuple[Path, Path]:
    """Apply a mirror from a to b below a path of its own; return both directories."""
    source, target = scene.roots["a"] / name, scene.roots["b"] / name
    source.mkdir()
    spec = {"source": f"a:data/{name}", "targets": [f"b:data/{name}"], **more}
    await scene.apply(name=name, **spec)
    return source, target


def is_nothing(run: Any) -> bool:
    counts = ("files_copied", "files_updated", "files_deleted", "files_renamed", "bytes_copied")
    return all(run[count] == 0 for count in counts)


@pytest.mark.timeout(180)
async def test_i10_first_copy_then_nothing_then_what_changed(steady: Scene) -> None:
    source, target = await job_of(steady, "main")
    total = grow(source, 300)
    run = (await steady.ok("job", "run", "main", "--wait", "-o", "json")).json
    assert run.keys() >= RUN_FIELDS
    assert (run["job"], run["outcome"], run["errors"]) == ("main", "succeeded", [])
    assert (run["files_copied"], run["bytes_copied"]) == (300, total)
    assert run["bytes_sent"] >= total
    assert run["files_scanned"] == 340  # with the directories
    (attempt,) = run["attempts"]
    assert attempt.keys() == {"owner", "token", "started", "ended", "why_ended"}
    assert attempt["owner"] == "c1"
    check_equal(source, target)
    assert is_nothing(await steady.run_ok("main"))

    victim, file = source / "d001" / "f000001", source / "d002" / "f000002"
    victim.unlink()
    put(file, b"edited", T0 + 7)
    (source / "d003" / "f000003").rename(source / "renamed")
    (source / "d004" / "f000004").chmod(0o600)
    (source / "d005" / "f000005").unlink()
    (source / "d005" / "f000005").mkdir()
    put(source / "d005" / "f000005" / "inside", "x")
    (source / "d006" / "f000006").unlink()
    (source / "d006" / "f000006").symlink_to("nowhere")
    for entry in list((source / "d007").iterdir()):
        entry.unlink()
    (source / "d007").rmdir()
    put(source / "d007", "a file where a directory was")
    os.utime(source / "d008", ns=(T0, T0))
    run = await steady.run_ok("main")
    assert (run["files_copied"], run["files_renamed"]) == (3, 1)
    assert run["files_updated"] >= 1
    check_equal(source, target)
    assert is_nothing(await steady.run_ok("main"))


async def test_names_links_modes_times_and_depth_arrive(steady: Scene) -> None:
    source, target = await job_of(steady, "odd")
    for name in STRANGE:
        put(source / os.fsdecode(name), name)
    (source / ("y" * 255)).mkdir()
    for mode in (0o400, 0o600, 0o644, 0o755, 0o777):
        put(source / f"mode{mode:o}", "m", mode=mode)
    for number, when in enumerate((0, 1, 999_999_999, T0, 4_000_000_000_000_000_001)):
        put(source / f"time{number}", "t", when)
    for number, to in enumerate(("nowhere", "../out", "/etc/passwd", ".", "caf", "x" * 4000)):
        (source / f"link{number}").symlink_to(to)
    os.utime(source / "link0", ns=(T0, T0), follow_symlinks=False)
    put(source / "empty", "")
    deep = source
    for level in range(200):
        deep /= f"{level:03}"
    put(deep / "bottom", "deep", T0)
    (source / "bare").mkdir(mode=0o711)
    run = await steady.run_ok("odd")
    assert run["errors"] == []
    check_equal(source, target)
    assert is_nothing(await steady.run_ok("odd"))


def dig(source: Path) -> None:
    """Make a file whose path is 5000 bytes long."""
    held = os.open(source, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("z" * 250, dir_fd=held)
        below = os.open("z" * 250, os.O_RDONLY, dir_fd=held)
        os.close(held)
        held = below
    with os.fdopen(os.open("end", os.O_WRONLY | os.O_CREAT, dir_fd=held), "wb") as file:
        file.write(b"far away")
    os.close(held)


async def test_a_path_longer_than_path_max_arrives(steady: Scene) -> None:
    source, target = await job_of(steady, "long")
    dig(source)
    run = await steady.run_ok("long")
    assert run["files_copied"] == 1
    assert picture(source) == picture(target)


async def test_what_cannot_be_carried_is_named_and_left_alone(steady: Scene) -> None:
    source, target = await job_of(steady, "special")
    put(source / "file", "x")
    os.mkfifo(source / "fifo")
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(source)
        try:
            one.bind("socket")
        finally:
            os.chdir(here)
    run = await steady.run_ok("special")
    assert {error["path"] for error in run["errors"]} == {"fifo", "socket"}
    assert sorted(os.listdir(target)) == ["file"]


async def test_every_json_document_has_its_fields(steady: Scene) -> None:
    await job_of(steady, "json")
    run = await steady.run_ok("json")
    shown = (await steady.ok("run", "show", "json", run["id"], "-o", "json")).json
    assert shown == run
    listed = (await steady.ok("run", "list", "json", "-o", "json")).json
    assert [one["id"] for one in listed] == [run["id"]]
    assert listed[0].keys() >= RUN_FIELDS
    job = (await steady.ok("job", "show", "json", "-o", "json")).json
    assert job.keys() >= JOB_FIELDS
    assert (job["phase"], job["owner"], job["last_run"]) == ("idle", "c1", run["id"])
    assert job["exposure_s"].keys() == {"b:data/json"}
    assert 0 <= job["exposure_s"]["b:data/json"] < 60
    assert job["last_success"] == run["started"]
    jobs = (await steady.ok("job", "list", "-o", "json")).json
    assert "json" in [one["name"] for one in jobs]
    workers = (await steady.ok("worker", "list", "-o", "json")).json
    assert [one["name"] for one in workers] == ["a", "b", "c"]
    assert all(one["reachable"] for one in workers)
    worker = (await steady.ok("worker", "show", "a", "-o", "json")).json
    assert next(root["name"] for root in worker["roots"]) == "data"
    tested = (await steady.ok("worker", "test", "a", "-o", "json")).json
    assert tested.keys() >= TEST_FIELDS
    assert tested["identity"] == "worker/a"
    assert tested["throughput_bytes_per_s"] > 1_000_000
    assert tested["rtt_ms"] > 0
    (coordinator,) = (await steady.ok("coordinator", "list", "-o", "json")).json
    assert coordinator["name"] == "c1"
    status = (await steady.ok("status", "-o", "json")).json
    assert {"coordinators", "workers", "jobs"} <= status.keys()
    explained = (await steady.ok("job", "explain", "json", "-o", "json")).json
    assert explained["owner"] == "c1"
    assert explained["reasons"]
    previewed = (await steady.ok("job", "preview", "json", "-o", "json")).json
    assert previewed["changes"] == []


async def test_apply_is_declarative_and_dry_run_changes_nothing(steady: Scene) -> None:
    (steady.roots["a"] / "declared").mkdir()
    spec = {
        "name": "declared",
        "rule": "mirror",
        "source": "a:data/declared",
        "targets": ["b:data/declared"],
        "trigger": {"manual": True},
    }

    async def apply(*more: str) -> Any:
        text = json.dumps(spec).encode()
        return (await steady.ok("job", "apply", "-f", "-", "-o", "json", *more, stdin=text)).json[0]

    assert (await apply("--dry-run"))["action"] == "created"
    assert (await steady.baton("job", "show", "declared")).code == 2
    assert (await apply())["action"] == "created"
    assert (await apply())["action"] == "unchanged"
    spec["lease_ttl"] = "7s"
    changed = await apply("--dry-run")
    assert changed["action"] == "updated"
    assert any("lease_ttl" in text for text in changed["differences"])
    assert (await steady.show("declared"))["generation"] == 1
    assert (await apply())["generation"] == 2


async def test_every_runs_by_itself_and_stops_with_the_job(steady: Scene) -> None:
    source, target = await job_of(steady, "every", trigger={"every": "1s"})
    put(source / "one", "1")
    await until((target / "one").exists, "the first run")
    put(source / "two", "2")
    await until((target / "two").exists, "a later run")

    async def two_succeeded() -> bool:
        runs = await steady.ledger.runs("every")
        return sum(run.outcome.value == "succeeded" for _, run in runs) >= 2

    await until(two_succeeded)
    runs = await steady.ledger.runs("every")
    instants = [at for at, _ in runs]
    steps = {(b - a).total_seconds() for a, b in itertools.pairwise(instants)}
    assert steps <= {1.0}, "every due instant is in the ledger once (I9)"
    assert (await steady.show("every"))["next_due"] is not None
    await steady.ok("job", "delete", "every")
    assert (await steady.baton("job", "show", "every")).code == 2

    async def is_gone() -> bool:
        left = [await steady.store.get(steady.keys.owner("every"))]
        left += (await steady.store.range(steady.keys.runs("every"))).kvs
        left.append(await steady.store.get(steady.keys.state("every")))
        return not any(left)

    await until(is_gone, "nothing left of a deleted job")
    assert (target / "one").exists()


async def test_preview_lists_and_changes_nothing(steady: Scene) -> None:
    source, target = await job_of(steady, "preview")
    put(source / "keep", "k")
    put(source / "gone", "g")
    await steady.run_ok("preview")
    (source / "gone").unlink()
    put(source / "keep", "other")
    put(source / "new", "n")
    os.symlink("x", os.fsencode(source) + b"/l\xff")
    ended = await steady.ok("job", "preview", "preview", "-o", "json")
    found = {(one["action"], one["kind"], one["path"]) for one in ended.json["changes"]}
    assert found == {
        ("create", "file", "new"),
        ("create", "symlink", "l\udcff"),
        ("update", "file", "keep"),
        ("delete", "file", "gone"),
        ("metadata", "directory", ""),
    }
    assert sorted(os.listdir(target)) == ["gone", "keep"]
    assert len((await steady.ok("run", "list", "preview", "-o", "json")).json) == 1
    text = (await steady.ok("job", "preview", "preview")).out
    assert "delete" in text
    assert "gone" in text
    await steady.run_ok("preview")
    check_equal(source, target)


@pytest.mark.timeout(180)
async def test_cancel_ends_a_run_and_the_next_one_finishes(steady: Scene) -> None:
    source, target = await job_of(steady, "cancelled")
    grow(source, 10_000)
    run = await steady.request_run("cancelled")
    await until(lambda: target.exists() and any(target.iterdir()), "the beginning")
    with paused(steady.cluster.members["b"]):  # or the run could be over first
        await steady.ask("CancelRun", pb.CancelRunRequest(job="cancelled", run=run))
        record = await steady.run_ended("cancelled", run)
    assert record.outcome.value == "cancelled"
    again = await steady.baton("run", "cancel", "cancelled", run)
    assert again.code == 1
    assert "not going on" in again.err
    rest = await steady.run_ok("cancelled")
    # Nothing is sent twice; what was published as the run ended was not acknowledged any more.
    assert record.counts.files_copied + rest["files_copied"] <= 10_000
    check_equal(source, target)


async def test_a_run_while_one_goes_on_is_refused_in_words(steady: Scene) -> None:
    source, _ = await job_of(steady, "occupied")
    grow(source, 400)
    with paused(steady.cluster.members["b"]):  # the run waits for its target's session
        run = await steady.request_run("occupied")
        said = await steady.refusal_of("RunJob", pb.RunJobRequest(name="occupied"))
    assert f"run {run} is still going on" in said
    ended = await steady.baton("run", "follow", "occupied", run, "-o", "json")
    assert (ended.code, ended.json["outcome"]) == (0, "succeeded")


@pytest.mark.timeout(180)
async def test_i15_one_target_down_the_other_is_served_and_the_first_catches_up(
    pair: Scene,
) -> None:
    third = pair.worker("c")
    await pair.cluster.start("c")
    await pair.register("c")
    source = pair.roots["a"]
    grow(source, 50)
    await pair.apply(name="two", source="a:data", targets=["b:data", "c:data"])
    run = await pair.run_ok("two")
    assert run["files_copied"] == 100
    await third.kill()
    put(source / "new", "n")
    ended = await pair.baton("job", "run", "two", "--wait", "-o", "json")
    assert ended.code == 1
    assert ended.json["outcome"] == "failed"
    assert {error["member"] for error in ended.json["errors"]} == {"c:data"}
    assert ended.json["files_copied"] == 1
    check_equal(source, pair.roots["b"])
    job = (await pair.ok("job", "show", "two", "-o", "json")).json
    assert job["phase"] == "failed"
    assert "c:data" in job["reason"]
    assert job["exposure_s"]["b:data"] < job["exposure_s"]["c:data"]
    await pair.cluster.start("c")
    run = await pair.run_ok("two")
    assert run["files_copied"] == 1
    check_equal(source, pair.roots["c"])
