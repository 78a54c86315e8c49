from pathlib import Path

import pytest

from cli.exits import CommandFailed
from cli.settings import Flags, resolve
from wire.authority import init_ca, issue
from wire.credentials import Insecure
from wire.errors import AddressInvalid, CredentialsInvalid, InsecureRefused
from wire.identity import Identity, Role


@pytest.fixture
def user_file(home: Path) -> Path:
    path = home / ".config" / "baton" / "config.toml"
    path.parent.mkdir(parents=True)
    return path


def test_the_default_is_this_machine(home: Path) -> None:
    settings = resolve(Flags(), {"HOME": str(home)})
    assert settings.coordinators == ("127.0.0.1:7070",)
    assert isinstance(settings.credentials, Insecure)
    assert settings.credentials.identity.role is Role.OPERATOR


def test_flag_before_environment_before_file(home: Path, user_file: Path) -> None:
    user_file.write_text('coordinators = ["127.0.0.1:3", "localhost"]\n')
    environment = {"HOME": str(home)}
    assert resolve(Flags(), environment).coordinators == ("127.0.0.1:3", "localhost:7070")
    environment["BATON_COORDINATORS"] = "127.0.0.1:2, [::1]:2"
    assert resolve(Flags(), environment).coordinators == ("127.0.0.1:2", "[::1]:2")
    assert resolve(Flags("127.0.0.1:1"), environment).coordinators == ("127.0.0.1:1",)


def test_the_configuration_directory_can_be_elsewhere(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "xdg" / "baton"
    other.mkdir(parents=True)
    (other / "config.toml").write_text('coordinators = "127.0.0.1:9"\n')
    environment = {"HOME": str(home), "XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    assert resolve(Flags(), environment).coordinators == ("127.0.0.1:9",)


def test_certificates_of_flag_environment_and_file(
    home: Path, user_file: Path, tmp_path: Path
) -> None:
    init_ca(tmp_path / "ca", "prod")
    for name in ("a", "b", "c"):
        issue(tmp_path / "ca", Role.OPERATOR, name, tmp_path / name)
    user_file.write_text(f'tls = "{tmp_path}/c"\ncoordinators = "c1.lan:7070"\n')
    environment = {"HOME": str(home)}
    assert resolve(Flags(), environment).credentials.identity.name == "c"
    environment["BATON_TLS"] = str(tmp_path / "b")
    assert resolve(Flags(), environment).credentials.identity.name == "b"
    flags = Flags(tls=tmp_path / "a")
    assert resolve(flags, environment).credentials.identity == Identity("prod", Role.OPERATOR, "a")
    local = Flags("127.0.0.1:1", insecure=True)
    assert isinstance(resolve(local, environment).credentials, Insecure)


def test_others_are_not_talked_to_without_certificates_by_accident(home: Path) -> None:
    environment = {"HOME": str(home)}
    with pytest.raises(CommandFailed, match="--tls DIR"):
        resolve(Flags("c1.lan:7070"), environment)
    with pytest.raises(InsecureRefused):
        resolve(Flags("c1.lan:7070", insecure=True), environment)
    environment["BATON_ALLOW_INSECURE_NETWORK"] = "1"
    assert resolve(Flags("c1.lan:7070", insecure=True), environment).coordinators


@pytest.mark.parametrize("text", ["coordinator = 'x'", "tls = true", "insecure = 'yes'", "tls = ["])
def test_a_wrong_file_is_named(home: Path, user_file: Path, text: str) -> None:
    user_file.write_text(text)
    with pytest.raises(CommandFailed, match=r"config\.toml") as caught:
        resolve(Flags(), {"HOME": str(home)})
    assert caught.value.code == 2


def test_contradictions_and_nonsense_are_refused(home: Path) -> None:
    environment = {"HOME": str(home)}
    with pytest.raises(CommandFailed, match="use one of them"):
        resolve(Flags(tls=Path("/x"), insecure=True), environment)
    with pytest.raises(AddressInvalid):
        resolve(Flags("a b"), environment)
    with pytest.raises(CredentialsInvalid):
        resolve(Flags(tls=Path("/nowhere")), environment)


def test_any_user_has_a_name_that_a_label_can_carry(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for user, name in (("Ann.Smith", "ann-smith"), ("___", "operator"), ("any", "operator")):
        monkeypatch.setenv("LOGNAME", user)
        settings = resolve(Flags(), {"HOME": str(home)})
        assert settings.credentials.identity.name == name
