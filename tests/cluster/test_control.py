"""What operators do to running jobs, with the real command on real processes."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import Scene, paused, until
from tests.cluster.trees import check_equal, grow

pytestmark = pytest.mark.timeout(180)


async def job_of(scene: Scene, name: str, **more: Any) -> tuple[Path, Path]:
    source, target = scene.roots["a"] / name, scene.roots["b"] / name
    source.mkdir()
    grow(source, 40)
    await scene.apply(name=name, source=f"a:data/{name}", targets=[f"b:data/{name}"], **more)
    return source, target


async def test_a_paused_job_waits_whoever_dies_and_goes_on_after_resume(trio: Scene) -> None:
    source, target = await job_of(trio, "paused", trigger={"every": "1s"})
    await until(target.exists)
    shown = (await trio.ok("job", "pause", "paused", "-o", "json")).json
    assert shown["phase"] == "paused"
    assert "paused by operator/" in shown["reason"]
    owner = await trio.owner("paused")
    assert owner is not None
    await trio.cluster.members[owner[0]].kill()

    async def moved() -> bool:
        now = await trio.owner("paused")
        return now is not None and now[1] != owner[1]

    await until(moved, "another owner", 20)
    refused = await trio.baton("job", "run", "paused")
    assert refused.code == 1
    assert "baton job resume paused" in refused.err
    assert (await trio.show("paused"))["phase"] == "paused"
    (source / "new").write_text("after")
    count = len(await trio.ledger.runs("paused"))
    shown = (await trio.ok("job", "resume", "paused", "-o", "json")).json
    assert shown["phase"] != "paused"
    await until((target / "new").exists)

    async def skipped() -> list[str]:
        runs = await trio.ledger.runs("paused")
        return [run.reason for _, run in runs if run.reason == "the job was paused"]

    assert await until(skipped, "the instants of the pause in the ledger")
    assert len(await trio.ledger.runs("paused")) > count


async def test_drain_moves_and_restart_goes_home(trio: Scene) -> None:
    source, target = await job_of(trio, "moving", placement={"nodes": ["c2"]})

    async def owned_by(node: str) -> bool:
        owner = await trio.owner("moving")
        return owner is not None and owner[0] == node

    await until(lambda: owned_by("c2"))
    drained = (await trio.ok("coordinator", "drain", "c2", "-o", "json")).json
    assert (drained["name"], drained["draining"], drained["jobs_owned"]) == ("c2", True, 0)
    assert not await owned_by("c2")
    said = (await trio.ok("job", "explain", "moving")).out
    assert "because c2 gave it up (drained by operator/" in said
    assert ") and c2, preferred, is draining" in said
    listed = (await trio.ok("coordinator", "list", "-o", "json")).json
    assert [one["name"] for one in listed if one["draining"]] == ["c2"]
    assert (await trio.ok("coordinator", "undrain", "c2", "-o", "json")).json["draining"] is False
    explained = (await trio.ok("job", "explain", "moving", "-o", "json")).json
    assert "it stays until you run 'baton job restart moving'" in explained["reasons"][0]
    assert explained["next_owner"] == "c2"
    ahead = (await trio.show("moving"))["takeover"]
    assert (ahead["next_owner"], ahead["worst_s"], ahead["warning"]) == ("c2", 6.0, "")
    assert ahead["rule"] == "it is the first of the other preferred nodes that are there"
    shown = (await trio.ok("job", "restart", "moving", "-o", "json")).json
    assert shown["owner"] == "c2"
    await trio.run_ok("moving")
    check_equal(source, target)
    for command in ("drain", "undrain"):
        unknown = await trio.baton("coordinator", command, "c9")
        assert (unknown.code, "there is no coordinator c9" in unknown.err) == (2, True)


async def test_a_job_waits_for_its_only_coordinator_and_says_so(trio: Scene) -> None:
    await job_of(trio, "waits", placement={"nodes": ["c3"], "fallback": False})
    await until(lambda: trio.owner("waits"))
    alone = "nobody could take over: placement names c3 alone, and fallback is false"
    assert (await trio.show("waits"))["takeover"]["warning"] == alone
    assert f"warning: job waits: {alone}" in (await trio.ok("status")).out
    assert f"- if c3 goes, {alone}" in (await trio.ok("job", "explain", "waits")).out
    assert f"warning: {alone}" in (await trio.ok("job", "show", "waits")).out
    await trio.ok("coordinator", "drain", "c3")
    shown = await trio.show("waits")
    assert shown["phase"] == "waiting"
    assert "c3 is draining and takes no more" in shown["reason"]
    await trio.ok("coordinator", "undrain", "c3")
    await until(lambda: trio.owner("waits"))


async def test_edit_changes_a_job_and_keeps_what_cannot_be_applied(pair: Scene) -> None:
    await job_of(pair, "edited")
    editor = pair.directory / "editor.sh"
    editor.write_text("#!/bin/sh\nsed -i 's/manual: true/every: 15m/' \"$1\"\n")
    editor.chmod(0o755)
    env = {"EDITOR": str(editor), "TMPDIR": str(pair.directory)}
    changed = await pair.baton("job", "edit", "edited", "-o", "json", env=env)
    assert changed.code == 0, changed
    assert changed.json[0]["action"] == "updated"
    assert (await pair.show("edited"))["spec"]["trigger"] == {"every": "15m"}
    again = await pair.baton("job", "edit", "edited", env=env)
    assert (again.code, "nothing was changed" in again.err) == (0, True)
    editor.write_text("#!/bin/sh\necho 'rulle: mirror' >> \"$1\"\n")
    wrong = await pair.baton("job", "edit", "edited", env=env)
    assert wrong.code == 2
    assert "did you mean rule?" in wrong.err
    (kept,) = [name for name in os.listdir(pair.directory) if name.startswith("baton-edited")]
    assert wrong.err.strip().endswith(kept)


async def test_a_failed_run_is_tried_again_until_its_target_is_back(pair: Scene) -> None:
    source, target = await job_of(
        pair, "again", retries={"attempts": 50, "delay": "1s", "backoff": 1}
    )
    await pair.cluster.members["b"].kill()
    run = await pair.request_run("again")

    async def between() -> bool:
        return bool((await pair.show("again"))["phase"] == "waiting")

    await until(between, "an attempt that failed", 60)
    assert "failed, the next begins at" in (await pair.show("again"))["reason"]
    await pair.cluster.start("b")
    record = await pair.run_ended("again", run, 60)
    assert record.outcome.value == "succeeded"
    shown = await pair.show_run("again", run)
    assert len(shown["attempts"]) == record.failures + 1 >= 2
    assert "b:data/again" in shown["attempts"][0]["why_ended"]
    check_equal(source, target)


async def test_a_queued_run_answers_at_once(pair: Scene) -> None:
    await job_of(pair, "queued", overlap="queue")
    with paused(pair.cluster.members["b"]):
        first = await pair.request_run("queued")
        # Not by a command, whose start may outlast the first run's patience with its target.
        second = await pair.request_run("queued")
        assert second != first
        shown = await pair.show_run("queued", second)
        assert (shown["outcome"], shown["started"]) == ("running", None)
    await pair.run_ended("queued", first)
    record = await pair.run_ended("queued", second)
    assert record.outcome.value == "succeeded"


async def test_what_cannot_be_is_refused_at_apply_with_the_field(pair: Scene) -> None:
    small = "{name: x, rule: mirror, source: 'a:data/x', targets: ['b:data/x'], "
    for field, text in {
        "cron": 'trigger: {cron: "0 0 30 2 *"}}',
        "timezone": 'trigger: {cron: "0 2 * * *", timezone: Mars/Base}}',
        "windows": 'windows: [{from: "08:00", to: "08:00"}]}',
        "placement.nodes: there is no coordinator c9, and there was none; known: c1": (
            "placement: {nodes: [c1, c9], fallback: false}}"
        ),
        "lease_ttl": "lease_ttl: 61s}",
        "time_limit": "time_limit: 10ms}",
        "start_jitter": 'trigger: {cron: "* * * * *"}, start_jitter: 1m}',
        "priority": "priority: urgent}",
        "days": 'windows: [{days: someday, from: "08:00", to: "09:00"}]}',
    }.items():
        ended = await pair.baton("job", "apply", "-f", "-", stdin=(small + text).encode())
        assert ended.code == 2, ended
        assert field in ended.err


@pytest.mark.alone
async def test_a_drill_and_what_the_ledger_proves(trio: Scene) -> None:
    await job_of(trio, "drilled", trigger={"every": "1s"}, lease_ttl="2s")
    await until(lambda: trio.ledger.runs("drilled"))
    report = (await trio.ok("job", "drill", "drilled", "-o", "json")).json
    assert report["owner"] != report["next_owner"]
    assert 1.5 < report["detection_s"] < 5
    assert report["total_s"] < 12
    (before,), (worst,) = (report[name].values() for name in ("exposure_before_s", "exposure_s"))
    assert 0 <= before <= worst < 30
    assert worst > report["detection_s"], "no run began while nobody gave orders"
    proof = (await trio.ok("ledger", "verify", "-o", "json")).json
    assert proof["ok"] is True
    assert [one["job"] for one in proof["jobs"]] == ["drilled"]
    assert (await trio.ok("job", "pause", "drilled")).code == 0

    async def is_still() -> bool:
        return (await trio.state("drilled")).phase == "paused"

    await until(is_still)
    runs = await trio.ledger.runs("drilled")
    key = trio.keys.run("drilled", runs[len(runs) // 2][0])
    kv = await trio.store.get(key)
    assert kv is not None
    await trio.store.put(key, kv.value.replace(b'"by_hand":false', b'"by_hand":true'))
    broken = await trio.baton("ledger", "verify", "drilled", "-o", "json")
    assert (broken.code, broken.json["ok"]) == (1, False)
    assert "was changed by another hand" in broken.json["jobs"][0]["findings"][0]["what"]
    text = await trio.baton("ledger", "verify", "drilled")
    assert (text.code, "does not hold" in text.out) == (1, True)
    await trio.store.put(key, kv.value)
    await trio.ok("ledger", "verify", "drilled")
    await trio.store.delete(key)
    gone = await trio.baton("ledger", "verify", "drilled")
    assert (gone.code, "missing" in gone.out) == (1, True)
    unknown = await trio.baton("ledger", "verify", "nothing")
    assert (unknown.code, unknown.out) == (2, "")


async def test_outside_its_windows_a_job_waits_and_runs_by_hand_say_so(pair: Scene) -> None:
    now = datetime.now(UTC)
    closed = {
        "from": f"{now + timedelta(hours=2):%H:%M}",
        "to": f"{now + timedelta(hours=3):%H:%M}",
        "timezone": "Africa/Abidjan",
    }
    source, target = await job_of(pair, "nights", trigger={"every": "1s"}, windows=[closed])

    async def waits() -> dict[str, Any] | None:
        shown = await pair.show("nights")
        is_owned = shown["phase"] == "waiting" and shown["owner"]
        return shown if is_owned and "windows" in shown["reason"] else None

    shown = await until(waits, "the job to wait")
    assert (
        f"outside the job's windows: they open at {now + timedelta(hours=2):%Y-%m-%d %H:%M}"
        in (shown["reason"])
    )
    assert not target.exists()
    run = await pair.run_ok("nights")
    assert run["reason"].startswith("asked for by operator/")
    assert run["reason"].endswith(", outside the job's windows")
    check_equal(source, target)
    (source / "later").write_text("when they open")
    opened = {"days": "mon-sun", "from": "00:00", "to": "24:00"}
    await pair.apply(
        name="nights",
        source="a:data/nights",
        targets=["b:data/nights"],
        trigger={"every": "1s"},
        windows=[opened],
    )
    await until((target / "later").exists)


async def test_the_doctor_looks_at_a_real_cluster(trio: Scene) -> None:
    await job_of(trio, "healthy")
    await until(lambda: trio.owner("healthy"))
    found = await trio.baton("doctor", "-o", "json", "--timeout", "30")
    checks = {check["name"]: check for check in found.json["checks"]}
    failed = [check for check in checks.values() if check["level"] == "failed"]
    assert (found.code, failed) == (0, [])
    for node in ("c1", "c2", "c3"):
        assert checks[f"leases, by {node}"]["level"] == "ok"
        assert checks[f"owners, by {node}"]["level"] == "ok"
        assert "version 3." in checks[f"etcd version, by {node}"]["detail"]
    assert checks["clocks"]["level"] == "ok"
    await trio.cluster.members["b"].stop()
    found = await trio.baton("doctor", "-o", "json", "--timeout", "30")
    assert found.code == 1
    assert [one["name"] for one in found.json["checks"] if one["level"] == "failed"] == ["worker b"]
