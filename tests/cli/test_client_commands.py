import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from baton.v1 import coordinator_pb2 as pb
from baton.v1.common_pb2 import Counts, Hold, PlannedChange, Problem, Progress
from coordinator.job_file import decode_spec
from tests.cli.conftest import FOREVER, Canned, run_message, serving
from wire.authority import init_ca, issue
from wire.credentials import load_tls
from wire.identity import Role

JOB = pb.JobStatus(
    name="j",
    spec=b'{"name":"j"}',
    phase="idle",
    lease_ttl_s=5,
    exposure=[
        pb.TargetExposure(target="w2:r", exposure_s=1.5),
        pb.TargetExposure(target="w3:r"),
    ],
    generation=3,
)
WORKER = pb.WorkerInfo(
    name="w1",
    address="127.0.0.1:9033",
    reachable=True,
    identity="worker/w1",
    roots=[pb.WorkerRoot(name="r", path="/r", available=True, free_bytes=10)],
)
JOB_FIELDS = {
    "name", "phase", "reason", "owner", "token", "lease_ttl_s", "owner_since", "next_due",
    "last_run", "last_success", "exposure_s", "generation",
}  # fmt: skip
RUN_FIELDS = {
    "job", "id", "due", "started", "ended", "outcome", "attempts", "files_scanned", "files_copied",
    "files_updated", "files_deleted", "files_renamed", "bytes_copied", "bytes_sent", "conflicts",
    "errors",
}  # fmt: skip
TEST_FIELDS = {
    "name", "address", "identity", "group", "roots", "rtt_ms", "throughput_bytes_per_s",
}  # fmt: skip


async def test_job_show_has_the_fields_of_the_interface(coordinator: Canned, baton: Any) -> None:
    coordinator.answer("GetJob", JOB)
    ended = await baton("job", "show", "j", "-o", "json", "--coordinator", coordinator.address)
    assert (ended.code, ended.err) == (0, "")
    assert set(ended.json) >= JOB_FIELDS
    assert ended.json["owner"] is None
    assert ended.json["exposure_s"] == {"w2:r": 1.5, "w3:r": None}
    assert coordinator.requests("GetJob") == [pb.GetJobRequest(name="j")]
    text = await baton("job", "show", "j", "--coordinator", coordinator.address)
    assert text.code == 0
    assert "exposure of w2:r: 1.5 s" in text.out


async def test_lists_are_arrays(coordinator: Canned, baton: Any) -> None:
    coordinator.answer("ListJobs", pb.ListJobsResponse(jobs=[JOB]))
    coordinator.answer("ListWorkers", pb.ListWorkersResponse(workers=[WORKER]))
    coordinator.answer("ListRuns", pb.ListRunsResponse(runs=[run_message()]))
    info = pb.CoordinatorInfo(name="c1", address="127.0.0.1:7070")
    coordinator.answer("ListCoordinators", pb.ListCoordinatorsResponse(coordinators=[info]))
    for group, fields in (
        ("job", JOB_FIELDS),
        ("worker", {"name", "address", "group", "roots", "reachable"}),
        ("run", RUN_FIELDS),
        ("coordinator", {"name", "address"}),
    ):
        ended = await baton(group, "list", "-o", "json", "--coordinator", coordinator.address)
        assert (ended.code, ended.err) == (0, "")
        (only,) = ended.json
        assert set(only) >= fields
        text = await baton(group, "list", "--coordinator", coordinator.address)
        assert len(text.out.splitlines()) == 2
        assert only.get("name", "j") in text.out


async def test_status_is_one_object_and_a_readable_page(coordinator: Canned, baton: Any) -> None:
    coordinator.answer(
        "GetStatus", pb.ClusterStatus(workers=[WORKER], jobs=[JOB], answered_by="c1")
    )
    ended = await baton("status", "-o", "json", "--coordinator", coordinator.address)
    assert ended.json["answered_by"] == "c1"
    assert set(ended.json) == {"answered_by", "coordinators", "workers", "jobs", "warnings"}
    text = await baton("status", "--coordinator", coordinator.address)
    assert "jobs: 1 (1 idle)" in text.out
    assert coordinator.asked[0][2].startswith("operator/")


async def test_worker_test_has_the_fields_of_the_interface(coordinator: Canned, baton: Any) -> None:
    coordinator.answer(
        "TestWorker", pb.WorkerTest(worker=WORKER, rtt_ms=0.5, throughput_bytes_per_s=1e9)
    )
    ended = await baton("worker", "test", "w1", "-o", "json", "--coordinator", coordinator.address)
    assert set(ended.json) >= TEST_FIELDS
    text = await baton("worker", "test", "w1", "--coordinator", coordinator.address)
    assert "1.0 GB/s" in text.out


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (grpc.StatusCode.NOT_FOUND, 2),
        (grpc.StatusCode.INVALID_ARGUMENT, 2),
        (grpc.StatusCode.ALREADY_EXISTS, 2),
        (grpc.StatusCode.FAILED_PRECONDITION, 1),
        (grpc.StatusCode.INTERNAL, 1),
        (grpc.StatusCode.UNAVAILABLE, 4),
        (grpc.StatusCode.PERMISSION_DENIED, 5),
        (grpc.StatusCode.UNAUTHENTICATED, 5),
    ],
)
async def test_a_refusal_gives_its_exit_code_and_its_sentence(
    coordinator: Canned, baton: Any, status: grpc.StatusCode, code: int
) -> None:
    coordinator.answer("GetJob", (status, "the very sentence"))
    ended = await baton("job", "show", "j", "-o", "json", "--coordinator", coordinator.address)
    assert (ended.code, ended.out) == (code, "")
    assert "the very sentence" in ended.err


async def test_nobody_there_says_who_was_tried(baton: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        one, two = (f"127.0.0.1:{each.getsockname()[1]}" for each in (silent, closed))
        ended = await baton("job", "list", "--coordinator", f"{one},{two}", "--timeout", "1")
    assert (ended.code, ended.out) == (4, "")
    assert f"{one}: no answer within 1 s" in ended.err
    assert f"{two}: connection refused" in ended.err


async def test_the_first_that_answers_serves(coordinator: Canned, baton: Any) -> None:
    coordinator.answer("ListJobs", pb.ListJobsResponse(jobs=[JOB]))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        named = f"127.0.0.1:{port},127.0.0.1:1,{coordinator.address}"
        ended = await baton("job", "list", "-o", "json", env={"BATON_COORDINATORS": named})
    assert (ended.code, len(ended.json)) == (0, 1)


async def test_one_without_etcd_gives_way_to_another_where_that_is_safe(
    coordinator: Canned, baton: Any
) -> None:
    async with serving(Canned()) as other:
        named = f"{coordinator.address},{other.address}"
        cut_off = (grpc.StatusCode.UNAVAILABLE, "etcd does not answer")
        for canned in (coordinator, other):
            canned.answer("ListJobs", cut_off, pb.ListJobsResponse(jobs=[JOB]))
            canned.answer("RunJob", cut_off)
        coordinator.answer("ListJobs", cut_off)
        other.answer("ListJobs", pb.ListJobsResponse(jobs=[JOB]))
        ended = await baton("job", "list", "-o", "json", "--coordinator", named)
        assert (ended.code, len(ended.json)) == (0, 1)
        ended = await baton("job", "run", "j", "--coordinator", named)
        assert ended.code == 4
        assert len(coordinator.requests("RunJob")) + len(other.requests("RunJob")) == 1


async def test_a_coordinator_that_answers_too_late_is_not_waited_for(
    baton: Any, home: Path
) -> None:
    class Slow(Canned):
        def servicer(self) -> Any:
            async def forever(_: Any, request: Any, context: Any) -> None:
                await asyncio.Event().wait()

            servicer = super().servicer()
            type(servicer).GetJob = forever
            return servicer

    async with serving(Slow()) as slow:
        ended = await baton("job", "show", "j", "--coordinator", slow.address, "--timeout", "0.5")
    assert ended.code == 4
    assert "did not answer in time" in ended.err


@pytest.mark.parametrize(
    ("outcome", "code"),
    [("succeeded", 0), ("failed", 1), ("blocked", 3), ("cancelled", 1), ("missed", 1)],
)
async def test_run_wait_ends_as_the_run_does(
    coordinator: Canned, baton: Any, outcome: str, code: int
) -> None:
    end = run_message(
        outcome,
        counts=Counts(files_copied=7),
        attempts=[pb.Attempt(owner="c1", token="1-2")],
        problems=[Problem(path=b"caf\xe9", member="w2:r", what="unreadable", detail="EIO")],
        holds=[Hold(reason="emptied", member="w1:r", detail="it is empty")],
    )
    progress = Progress(phase="push", files_total=9, bytes_total=100, done=Counts(bytes_copied=5))
    coordinator.answer("RunJob", pb.RunJobResponse(job="j", run=end.id))
    coordinator.answer(
        "FollowRun",
        [
            pb.FollowRunResponse(run=run_message("running", progress=progress)),
            pb.FollowRunResponse(run=end),
        ],
    )
    ended = await baton(
        "job", "run", "j", "--wait", "-o", "json", "--coordinator", coordinator.address
    )
    assert ended.code == code
    assert set(ended.json) >= RUN_FIELDS
    assert ended.json["outcome"] == outcome
    assert ended.json["files_copied"] == 7
    assert ended.json["errors"][0]["path"] == "caf\udce9"
    assert r"caf\udce9" in ended.out
    assert "push, 0/9 files" in ended.err
    assert ("baton run approve" in ended.err) == (outcome == "blocked")


async def test_following_survives_its_coordinator(coordinator: Canned, baton: Any) -> None:
    async with serving(Canned()) as other:
        running = pb.FollowRunResponse(run=run_message("running"))
        gone = (grpc.StatusCode.UNAVAILABLE, "the owner is gone")
        for canned in (coordinator, other):
            canned.answer(
                "FollowRun",
                [running, gone],
                [running],
                [pb.FollowRunResponse(run=run_message("succeeded"))],
            )
        named = f"{coordinator.address},{other.address}"
        ended = await baton("run", "follow", "j", "-o", "json", "--coordinator", named)
        assert ended.code == 0
        assert ended.json["outcome"] == "succeeded"
        asked = coordinator.requests("FollowRun") + other.requests("FollowRun")
        runs = [request.run for request in asked]
        assert runs.count("") == 1
        assert set(runs) == {"", run_message().id}  # whoever serves, it is the same run


async def test_an_interrupted_wait_leaves_the_run_alone(coordinator: Canned, home: Path) -> None:
    coordinator.answer("RunJob", pb.RunJobResponse(job="j", run=run_message().id))
    progress = Progress(phase="scan")
    running = pb.FollowRunResponse(run=run_message("running", progress=progress))
    coordinator.answer("FollowRun", [running, FOREVER])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", "job", "run", "j", "--wait"),
        *("--coordinator", coordinator.address),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "HOME": str(home)},
    )
    assert process.stderr is not None
    said = b""
    while b": scan" not in said:
        line = await process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"")
    assert b"it goes on when this command is interrupted" in said
    assert [name for name, _, _ in coordinator.asked] == ["RunJob", "FollowRun"]


async def test_preview_lists_and_says_whether_it_would_be_held(
    coordinator: Canned, baton: Any
) -> None:
    changes = [
        PlannedChange(path=b"a\x1b[2J\xff", member="w2:r", action="create", kind="file", size=5),
        PlannedChange(path=b"d", member="w2:r", action="delete", kind="directory"),
    ]
    hold = Hold(reason="max-delete", member="w2:r", detail="60 % would go")
    coordinator.answer(
        "PreviewJob",
        [
            pb.PreviewJobResponse(changes=changes[:1]),
            pb.PreviewJobResponse(changes=changes[1:]),
            pb.PreviewJobResponse(holds=[hold], ended=True, outcome="blocked"),
        ],
    )
    ended = await baton("job", "preview", "j", "-o", "json", "--coordinator", coordinator.address)
    assert ended.code == 3
    assert [change["path"] for change in ended.json["changes"]] == ["a\x1b[2J\udcff", "d"]
    assert ended.json["holds"][0]["reason"] == "max-delete"
    text = await baton("job", "preview", "j", "--coordinator", coordinator.address)
    assert text.code == 3
    assert r"a\x1b[2J\xff" in text.out
    assert "\x1b" not in text.out


async def test_a_preview_that_breaks_off_is_no_preview(coordinator: Canned, baton: Any) -> None:
    coordinator.answer("PreviewJob", [pb.PreviewJobResponse()])
    ended = await baton("job", "preview", "j", "-o", "json", "--coordinator", coordinator.address)
    assert (ended.code, ended.out) == (1, "")


async def test_apply_reads_files_and_standard_input(
    coordinator: Canned, baton: Any, tmp_path: Path
) -> None:
    text = "name: {}\nrule: mirror\nsource: w1:r\ntargets: [w2:{}]\n"
    (tmp_path / "a.yaml").write_text(text.format("a", "x"))
    (tmp_path / "b.yaml").write_text(text.format("b", "y"))
    applied = pb.AppliedJob(
        name="a", action="updated", differences=["lease_ttl: 5s -> 9s"], warnings=["w2 is away"]
    )
    coordinator.answer("ApplyJobs", pb.ApplyJobsResponse(jobs=[applied]))
    files = ("-f", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), "-f", "-")
    ended = await baton(
        *("job", "apply", *files, "--dry-run", "--coordinator", coordinator.address),
        stdin=json.dumps(
            {"name": "c", "rule": "mirror", "source": "w1:r", "targets": ["w2:z"]}
        ).encode(),
    )
    assert ended.code == 0
    assert ended.out == "a: would be updated\n  lease_ttl: 5s -> 9s\n"
    assert "w2 is away" in ended.err
    (request,) = coordinator.requests("ApplyJobs")
    assert request.dry_run
    assert sorted(decode_spec(spec).name for spec in request.specs) == ["a", "b", "c"]


async def test_a_wrong_job_file_never_leaves(
    coordinator: Canned, baton: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: a\nrule: mirror\nsource: w1:r\ntargets: [w2:r]\nlease_tl: 5s\n")
    ended = await baton("job", "apply", "-f", str(path), "--coordinator", coordinator.address)
    assert (ended.code, ended.out) == (2, "")
    assert "document 1 (a): lease_tl: unknown field: did you mean lease_ttl?" in ended.err
    path.write_text("name: a\nrule: mirror\nsource: w1:r\ntargets: [w2:r]\n")
    both = ("-f", str(path), "-f", str(path))
    twice = await baton("job", "apply", *both, "--coordinator", coordinator.address)
    assert twice.code == 2
    assert "name: a is in two files" in twice.err
    missing = await baton("job", "apply", "-f", "/none", "--coordinator", coordinator.address)
    assert missing.code == 2
    assert coordinator.asked == []


async def test_add_makes_a_job_of_its_options(coordinator: Canned, baton: Any) -> None:
    coordinator.answer(
        "ApplyJobs", pb.ApplyJobsResponse(jobs=[pb.AppliedJob(name="a", action="created")])
    )
    at = ("--coordinator", coordinator.address)
    base = ("job", "add", "a", "--rule", "mirror", "--source", "w1:r", "--target", "w2:r")
    more = ("--target", "w3:r", "--every", "5m", "--node", "c2", "--node", "c1", "--no-fallback")
    ended = await baton(*base, *more, *at)
    assert (ended.code, ended.out) == (0, "a: created\n")
    (request,) = coordinator.requests("ApplyJobs")
    assert request.create_only
    spec = decode_spec(request.specs[0])
    assert spec.targets == ("w2:r", "w3:r")
    assert spec.placement.nodes == ("c2", "c1")
    assert not spec.placement.fallback
    for wrong, said in (
        (("--every", "soon"), "trigger.every"),
        (("--cron", "0 2 *"), "trigger"),
        (("--filter", "a[b"), "filters[0]: 'a[b' has a [ without its ]"),
        (("--conflict", "newest"), "conflict: newest is for rules sync and exchange"),
        (("--copy-when", "always"), "copy_when: always is for rule copy"),
        (("--member", "w4:r"), "members: rule mirror has source and targets"),
        (("--every", "5m", "--realtime"), "trigger: has 2 forms"),
        (("--no-fallback",), "placement"),
    ):
        ended = await baton(*base, *wrong, *at)
        assert ended.code == 2
        assert said in ended.err
    assert len(coordinator.asked) == 1
    members = ("--rule", "sync", "--member", "w1:r", "--member", "w2:r", "--conflict", "newest")
    ended = await baton("job", "add", "s", *members, "--filter", "*.tmp", *at)
    assert ended.code == 0, ended.err
    spec = decode_spec(coordinator.requests("ApplyJobs")[-1].specs[0])
    assert (spec.members, spec.conflict, spec.filters) == (("w1:r", "w2:r"), "newest", ("*.tmp",))
    ended = await baton("job", "add", "m", "--target", "w2:r", *at)
    assert ended.code == 2
    assert "source: rule mirror needs one" in ended.err


async def test_writes_say_what_they_did(coordinator: Canned, baton: Any) -> None:
    at = ("--coordinator", coordinator.address)
    coordinator.answer("AddWorker", WORKER)
    coordinator.answer("RemoveWorker", pb.RemoveWorkerResponse())
    coordinator.answer("DeleteJob", pb.DeleteJobResponse())
    coordinator.answer("ApproveRun", run_message("running"))
    coordinator.answer("CancelRun", run_message("cancelled"))
    coordinator.answer("GetRun", run_message())
    coordinator.answer("GetWorker", WORKER)
    coordinator.answer("ExplainJob", pb.ExplainJobResponse(name="j", reasons=["because"]))
    for arguments, said in (
        (("worker", "add", "w1", "127.0.0.1:9033"), "answers as worker/w1"),
        (("worker", "remove", "w1"), "removed"),
        (("worker", "show", "w1"), "reachable"),
        (("job", "delete", "j"), "deleted"),
        (("job", "explain", "j"), "- because"),
        (("run", "approve", "j", "r"), "approved"),
        (("run", "cancel", "j", "r"), "cancelled"),
        (("run", "show", "j", "r"), "succeeded"),
    ):
        ended = await baton(*arguments, *at)
        assert ended.code == 0
        assert said in ended.out + ended.err
    ended = await baton("worker", "add", "w1", "nowhere", *at)
    assert ended.code == 2


async def test_certificates_decide_who_is_talked_to(baton: Any, tmp_path: Path) -> None:
    init_ca(tmp_path / "ca", "prod")
    for role, name in (
        (Role.COORDINATOR, "c9"),
        (Role.OPERATOR, "ann"),
        (Role.WORKER, "w1"),
    ):
        issue(tmp_path / "ca", role, name, tmp_path / name)
    listing = pb.ListJobsResponse(jobs=[JOB])
    async with serving(Canned(load_tls(tmp_path / "c9"), {"ListJobs": [listing]})) as right:
        at = ("--coordinator", right.address)
        ended = await baton("job", "list", "-o", "json", "--tls", str(tmp_path / "ann"), *at)
        assert (ended.code, len(ended.json)) == (0, 1)
        assert right.asked[0][2] == "operator/ann"
        ended = await baton("job", "list", *at, env={"BATON_TLS": str(tmp_path / "ann")})
        assert ended.code == 0
        ended = await baton("job", "list", *at)
        assert ended.code == 4
        assert "does it want --tls?" in ended.err
    async with serving(Canned(load_tls(tmp_path / "w1"), {"ListJobs": [listing]})) as impostor:
        ended = await baton(
            *("job", "list", "--tls", str(tmp_path / "ann"), "--coordinator", impostor.address)
        )
        assert ended.code == 5
        assert "not that of a coordinator of this cluster" in ended.err
        assert impostor.asked == []
