"""From flags, environment and file to a configuration, by way of the real command tree."""

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import coordinators, workers
from coordinator.config import CoordinatorConfig
from coordinator.flapping import FlapLimits
from wire.authority import init_ca, issue
from wire.credentials import Insecure, Tls
from wire.errors import AddressInUse
from wire.identity import Identity, Role
from worker.config import DEFAULT_MAX_RUNS, WorkerConfig
from worker.roots import ExportedRoot


class Started:
    """What a process would have been started with."""

    def __init__(self) -> None:
        self.config: Any = None
        self.code = 0
        self.said = ""
        self.raises: Exception | None = None

    async def run(self, config: Any) -> None:
        self.config = config
        if self.raises is not None:
            raise self.raises


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Started]:
    """Run `start` of a group up to where the process itself would begin."""

    def run(kind: str, *arguments: str, raises: Exception | None = None, **env: str) -> Started:
        started = Started()
        started.raises = raises
        daemon = types.ModuleType(f"{kind}.daemon")
        daemon.run = started.run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, daemon.__name__, daemon)
        app = {"coordinator": coordinators.app, "worker": workers.app}[kind]
        result = CliRunner().invoke(app, ["start", *arguments], env={"BATON_TLS": None, **env})
        started.code, started.said = result.exit_code, result.output
        return started

    monkeypatch.chdir(tmp_path)
    return run


C1 = ("--name", "c1", "--etcd", "http://127.0.0.1:2379", "--state", "state")
W1 = ("--name", "w1", "--state", "state", "--root", "r=files")


def test_a_coordinator_of_flags(start: Callable[..., Started], tmp_path: Path) -> None:
    started = start("coordinator", *C1, "--insecure")
    assert started.code == 0, started.said
    config = started.config
    assert isinstance(config, CoordinatorConfig)
    assert config.name == "c1"
    assert config.etcd.endpoints == ("http://127.0.0.1:2379",)
    assert (config.listen, config.http) == ("127.0.0.1:7070", "127.0.0.1:7080")
    assert config.state == tmp_path / "state"
    assert config.prefix == "/baton/v1/"
    assert config.credentials == Insecure(Identity("local", Role.COORDINATOR, "c1"))


def test_how_a_coordinator_takes_over(start: Callable[..., Started]) -> None:
    plain = start("coordinator", *C1, "--insecure").config
    assert plain.flaps == FlapLimits(losses=3, within_s=600.0, hold_s=300.0)
    assert plain.claims_per_s == 4000.0
    told = ("--flap-losses", "0", "--flap-within", "1m", "--hold-down", "30s")
    config = start("coordinator", *C1, *told, BATON_CLAIMS_PER_SECOND="50").config
    assert config.flaps == FlapLimits(losses=0, within_s=60.0, hold_s=30.0)
    assert config.claims_per_s == 50.0
    for option, value in (
        ("--flap-losses", "-1"),
        ("--flap-within", "0s"),
        ("--flap-within", "soon"),
        ("--hold-down", "2d"),
        ("--claims-per-second", "0"),
    ):
        started = start("coordinator", *C1, f"{option}={value}")
        assert started.code == 2, started.said
        assert started.config is None
        assert option in started.said


def test_a_worker_of_flags(start: Callable[..., Started], tmp_path: Path) -> None:
    started = start("worker", *W1, "--root", "s=/srv/a b:ro", "--http", "127.0.0.1:9034")
    assert started.code == 0, started.said
    config = started.config
    assert isinstance(config, WorkerConfig)
    assert config.roots == (
        ExportedRoot("r", tmp_path / "files", read_only=False),
        ExportedRoot("s", Path("/srv/a b"), read_only=True),
    )
    assert config.http == "127.0.0.1:9034"
    assert config.credentials.identity == Identity("local", Role.WORKER, "w1")


def test_flag_before_environment_before_file_before_default(
    start: Callable[..., Started], tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text(
        'name = "of-file"\nlisten = "127.0.0.1:1"\nhttp = "127.0.0.1:2"\n'
        'etcd = ["http://a:1", "http://b:1"]\nstate = "of-file"\n'
    )
    started = start(
        *("coordinator", "--config", "c.toml", "--name", "of-flag"),
        BATON_NAME="of-environment",
        BATON_LISTEN="127.0.0.1:3",
    )
    assert started.code == 0, started.said
    assert started.config.name == "of-flag"
    assert started.config.listen == "127.0.0.1:3"
    assert started.config.http == "127.0.0.1:2"
    assert started.config.etcd.endpoints == ("http://a:1", "http://b:1")
    assert started.config.prefix == "/baton/v1/"


def test_roots_of_the_strongest_source(start: Callable[..., Started], tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text(
        'name = "w1"\nstate = "state"\ninsecure = true\n[root]\nf = "/file"\n'
    )
    of_file = start("worker", "--config", "w.toml")
    of_environment = start("worker", "--config", "w.toml", BATON_ROOT="e=/env a,g=/env b:ro")
    of_flag = start("worker", "--config", "w.toml", "--root", "c=/cli", BATON_ROOT="e=/env")
    names = [[root.name for root in one.config.roots] for one in (of_file, of_environment, of_flag)]
    assert names == [["f"], ["e", "g"], ["c"]]
    assert of_environment.config.roots[0].path == Path("/env a")


def test_how_roots_are_watched(start: Callable[..., Started], tmp_path: Path) -> None:
    roots = ("--root", "s=/srv", "--root", "t=/trunk")
    of_flags = start("worker", *W1, *roots, "--watch", "s=never", "--watch", "t=always")
    assert [root.watch for root in of_flags.config.roots] == ["auto", "never", "always"]
    (tmp_path / "w.toml").write_text(
        'name = "w1"\nstate = "state"\ninsecure = true\n[root]\nf = "/file"\n[watch]\nf = "never"\n'
    )
    of_file = start("worker", "--config", "w.toml")
    assert of_file.code == 0, of_file.said
    assert [root.watch for root in of_file.config.roots] == ["never"]


def test_certificates_name_the_process(start: Callable[..., Started], tmp_path: Path) -> None:
    init_ca(tmp_path / "ca", "prod")
    issue(tmp_path / "ca", Role.WORKER, "w7", tmp_path / "w7")
    config = ("--state", "state", "--root", "r=files", "--listen", "0.0.0.0:9033")
    started = start("worker", *config, "--tls", "w7", "--advertise", "w7.lan:9033")
    assert started.code == 0, started.said
    assert started.config.name == "w7"
    assert isinstance(started.config.credentials, Tls)
    assert started.config.advertise == "w7.lan:9033"
    wrong = start("worker", *config, "--tls", "w7", "--name", "w8")
    assert (wrong.code, wrong.config) == (2, None)
    assert "w7 is for worker/w7, and this is worker/w8" in wrong.said
    other_role = start("coordinator", *C1, "--tls", "w7")
    assert other_role.code == 2
    assert "is for worker/w7" in other_role.said


def test_a_stronger_source_decides_between_tls_and_insecure(
    start: Callable[..., Started], tmp_path: Path
) -> None:
    started = start("worker", *W1, "--insecure", BATON_TLS="/nowhere")
    assert started.code == 0, started.said
    (tmp_path / "w.toml").write_text("insecure = true\n")
    started = start("worker", "--config", "w.toml", *W1, "--tls", "/nowhere")
    assert started.code == 2
    assert "cannot read /nowhere/ca.pem" in started.said


def test_a_listener_everywhere_is_reached_by_the_name_of_the_machine(
    start: Callable[..., Started],
) -> None:
    started = start(
        *("coordinator", *C1, "--listen", "0.0.0.0:7070", "--insecure"),
        BATON_ALLOW_INSECURE_NETWORK="1",
    )
    assert started.code == 0, started.said
    assert started.config.advertise.endswith(":7070")
    assert not started.config.advertise.startswith("0.0.0.0")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--name", "C1"), "not a DNS label"),
        (("--listen", "7070"), "HOST:PORT"),
        (("--http", "127.0.0.1:7070"), "--http: 127.0.0.1:7070 is what --listen says"),
        (("--etcd", "ftp://x"), "not an etcd endpoint"),
        (("--etcd", ","), "no etcd endpoint"),
        (("--etcd-user", "u"), "password"),
        (("--etcd-password-file", "/none"), "--etcd-password-file: cannot read /none"),
        (("--etcd-tls", "/none"), "--etcd-tls: cannot read /none/ca.pem"),
        (("--prefix", "baton"), "not a prefix"),
        (("--insecure", "--tls", "/none"), "--tls: and --insecure exclude each other"),
        (("--tls", "/none"), "cannot read /none/ca.pem"),
        (("--listen", "0.0.0.0:7070"), "--tls: DIR is needed"),
        (("--listen", "0.0.0.0:7070", "--insecure"), "--insecure is for the loopback"),
        (("--http", "0.0.0.0:7080", "--insecure"), "--insecure is for the loopback"),
        (("--advertise", "127.0.0.1:0"), "--advertise"),
        (("--nam", "x"), "No such option"),
        (("extra",), "unexpected extra argument"),
        (("--config", "/none"), "cannot read /none"),
    ],
)
def test_wrong_coordinators(
    start: Callable[..., Started], arguments: tuple[str, ...], said: str
) -> None:
    started = start("coordinator", *C1, *arguments)
    assert (started.code, started.config) == (2, None)
    assert said in started.said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--root", "r=/other"), "--root: r is said twice"),
        (("--root", "s=files/inner"), "--root: s and r overlap"),
        (("--root", "s=."), "lies in root s"),
        (("--root", "files"), "NAME=PATH"),
        (("--root", "a/b=/x"), "is no name"),
        (("--root", "s="), "NAME=PATH"),
        (("--watch", "s=never"), "--watch: 's=never': there is no root 's': use r"),
        (("--watch", "r=often"), "use NAME=auto, NAME=always or NAME=never"),
        (("--group", "g"), "--group: a member of a group needs --etcd"),
        (("--etcd", "http://127.0.0.1:1"), "say --group"),
        (("--group", "G", "--etcd", "http://127.0.0.1:1"), "not a DNS label"),
        (("--etcd-user", "u"), "--etcd: is needed"),
    ],
)
def test_wrong_workers(
    start: Callable[..., Started], arguments: tuple[str, ...], said: str
) -> None:
    started = start("worker", *W1, *arguments)
    assert (started.code, started.config) == (2, None)
    assert said in started.said


@pytest.mark.parametrize("missing", ["--name", "--state", "--root"])
def test_what_a_worker_needs(start: Callable[..., Started], missing: str) -> None:
    place = W1.index(missing)
    started = start("worker", *W1[:place], *W1[place + 2 :])
    assert started.code == 2
    assert missing in started.said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nam = 1", "nam: unknown field: did you mean name?"),
        ("config = 'x'", "config: unknown field"),
        ("name = [1]", "name: use one value"),
        ("name = ", "is not TOML"),
    ],
)
def test_wrong_files(start: Callable[..., Started], tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    started = start("coordinator", *C1, "--config", "c.toml")
    assert started.code == 2
    assert said in started.said.replace("\n", " ")


def test_a_process_that_cannot_begin_fails_with_a_sentence(start: Callable[..., Started]) -> None:
    started = start("worker", *W1, raises=AddressInUse("the port is taken"))
    assert started.code == 1
    assert "baton: the port is taken" in started.said


def test_the_password_comes_from_a_file(start: Callable[..., Started], tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("pass word\n")
    started = start("coordinator", *C1, "--etcd-user", "u", "--etcd-password-file", "secret")
    assert started.code == 0, started.said
    assert (started.config.etcd.user, started.config.etcd.password) == ("u", "pass word")


@pytest.mark.parametrize(
    ("kind", "flags", "unsaid"), [("coordinator", C1, None), ("worker", W1, DEFAULT_MAX_RUNS)]
)
def test_how_many_runs_at_once(
    start: Callable[..., Started], kind: str, flags: tuple[str, ...], unsaid: int | None
) -> None:
    assert start(kind, *flags).config.max_runs == unsaid
    assert start(kind, *flags, "--max-runs", "4").config.max_runs == 4
    assert start(kind, *flags, BATON_MAX_RUNS="7").config.max_runs == 7
    wrong = start(kind, *flags, "--max-runs", "0")
    assert (wrong.code, "--max-runs: 0 would let nothing run" in wrong.said) == (2, True)
