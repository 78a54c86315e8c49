"""`coordinator start` and `worker start`: the options of the processes, from wherever they come."""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.command import finish
from cli.config_file import load_config
from cli.exits import Exit
from cli.process_options import (
    EtcdOptions,
    ProcessOptions,
    TakeoverOptions,
    coordinator_config,
    worker_config,
)
from coordinator.keys import DEFAULT_PREFIX

_STRENGTH = ("DEFAULT", "DEFAULT_MAP", "ENVIRONMENT", "COMMANDLINE")

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=load_config,
        help="TOML with these options as keys.",
    ),
]
Name = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", envvar="BATON_NAME", help="Its name: a DNS label."),
]
State = Annotated[
    Path | None,
    typer.Option(
        "--state", metavar="DIR", envvar="BATON_STATE", help="A directory of this process alone."
    ),
]
Tls = Annotated[
    Path | None,
    typer.Option("--tls", metavar="DIR", envvar="BATON_TLS", help="ca.pem, cert.pem, key.pem."),
]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", envvar="BATON_INSECURE", help="No certificates: loopback only."),
]
AllowInsecure = Annotated[
    bool,
    typer.Option(
        "--allow-insecure-network",
        envvar="BATON_ALLOW_INSECURE_NETWORK",
        help="Let --insecure be for other addresses too, in a network that is trusted.",
    ),
]
Advertise = Annotated[
    str | None,
    typer.Option(
        "--advertise", metavar="HOST:PORT", envvar="BATON_ADVERTISE", help="Where others reach it."
    ),
]
MaxRuns = Annotated[
    int | None,
    typer.Option(
        "--max-runs",
        metavar="N",
        envvar="BATON_MAX_RUNS",
        help="At most so many runs at once here (a worker: 32 unless said); others wait, by priority.",
    ),
]
Etcd = Annotated[
    str | None,
    typer.Option("--etcd", metavar="URL[,URL...]", envvar="BATON_ETCD", help="The etcd cluster."),
]
EtcdTlsDir = Annotated[
    Path | None,
    typer.Option(
        "--etcd-tls",
        metavar="DIR",
        envvar="BATON_ETCD_TLS",
        help="ca.pem of etcd, and cert.pem and key.pem when it asks for them.",
    ),
]
EtcdUser = Annotated[
    str | None,
    typer.Option("--etcd-user", metavar="USER", envvar="BATON_ETCD_USER", help="etcd's user."),
]
EtcdPassword = Annotated[
    Path | None,
    typer.Option(
        "--etcd-password-file",
        metavar="FILE",
        envvar="BATON_ETCD_PASSWORD_FILE",
        help="A file with the user's password.",
    ),
]


def register_coordinator_start(app: typer.Typer) -> None:
    """Add `start` to the group of coordinators."""

    @app.command("start")
    def start(
        context: typer.Context,
        _config: Config = None,
        name: Name = None,
        etcd: Etcd = None,
        listen: Annotated[
            str, typer.Option("--listen", metavar="HOST:PORT", envvar="BATON_LISTEN")
        ] = "127.0.0.1:7070",
        http: Annotated[
            str,
            typer.Option(
                "--http", metavar="HOST:PORT", envvar="BATON_HTTP", help="Status page, metrics."
            ),
        ] = "127.0.0.1:7080",
        state: State = None,
        prefix: Annotated[
            str, typer.Option("--prefix", envvar="BATON_PREFIX", help="Of the keys in etcd.")
        ] = DEFAULT_PREFIX,
        tls: Tls = None,
        insecure: Insecure = False,
        allow_insecure_network: AllowInsecure = False,
        advertise: Advertise = None,
        max_runs: MaxRuns = None,
        flap_losses: Annotated[
            int,
            typer.Option(
                "--flap-losses",
                metavar="N",
                envvar="BATON_FLAP_LOSSES",
                help="Hold it down when it loses its jobs so often within --flap-within; 0: never.",
            ),
        ] = 3,
        flap_within: Annotated[
            str, typer.Option("--flap-within", metavar="TIME", envvar="BATON_FLAP_WITHIN")
        ] = "10m",
        hold_down: Annotated[
            str,
            typer.Option(
                "--hold-down",
                metavar="TIME",
                envvar="BATON_HOLD_DOWN",
                help="For so long it takes no job that another may own.",
            ),
        ] = "5m",
        claims_per_second: Annotated[
            int,
            typer.Option(
                "--claims-per-second",
                metavar="N",
                envvar="BATON_CLAIMS_PER_SECOND",
                help="How many jobs it takes over a second, when many are vacant at once.",
            ),
        ] = 4000,
        etcd_tls: EtcdTlsDir = None,
        etcd_user: EtcdUser = None,
        etcd_password_file: EtcdPassword = None,
    ) -> None:
        """Run a coordinator until it is stopped."""
        takeover = TakeoverOptions(flap_losses, flap_within, hold_down, claims_per_second)
        tls, insecure = _stronger(context, tls, insecure=insecure)
        options = ProcessOptions(
            name=name,
            listen=listen,
            http=http,
            state=state,
            tls=tls,
            insecure=insecure,
            allow_insecure_network=allow_insecure_network,
            advertise=advertise,
            etcd=EtcdOptions(etcd, etcd_tls, etcd_user, etcd_password_file),
            max_runs=max_runs,
        )

        async def run() -> Exit:
            return await _serve("coordinator.daemon", coordinator_config(options, prefix, takeover))

        finish(run)


def register_worker_start(app: typer.Typer) -> None:
    """Add `start` to the group of workers."""

    @app.command("start")
    def start(
        context: typer.Context,
        _config: Config = None,
        name: Name = None,
        listen: Annotated[
            str, typer.Option("--listen", metavar="HOST:PORT", envvar="BATON_LISTEN")
        ] = "127.0.0.1:9033",
        root: Annotated[
            list[str] | None,
            typer.Option(
                "--root",
                metavar="NAME=PATH[:ro]",
                help="A directory to export; may be repeated. [env: BATON_ROOT, with commas]",
            ),
        ] = None,
        watch: Annotated[
            list[str] | None,
            typer.Option(
                "--watch",
                metavar="NAME=MODE",
                help="auto (while a job uses it), always or never watch a root for changes; "
                "may be repeated. [env: BATON_WATCH, with commas]",
            ),
        ] = None,
        state: State = None,
        tls: Tls = None,
        insecure: Insecure = False,
        allow_insecure_network: AllowInsecure = False,
        http: Annotated[
            str | None,
            typer.Option("--http", metavar="HOST:PORT", envvar="BATON_HTTP", help="Metrics."),
        ] = None,
        advertise: Advertise = None,
        max_runs: MaxRuns = None,
        group: Annotated[
            str | None, typer.Option("--group", envvar="BATON_GROUP", help="Its worker group.")
        ] = None,
        etcd: Etcd = None,
        etcd_tls: EtcdTlsDir = None,
        etcd_user: EtcdUser = None,
        etcd_password_file: EtcdPassword = None,
    ) -> None:
        """Run a worker until it is stopped."""
        tls, insecure = _stronger(context, tls, insecure=insecure)
        options = ProcessOptions(
            name=name,
            listen=listen,
            http=http,
            state=state,
            tls=tls,
            insecure=insecure,
            allow_insecure_network=allow_insecure_network,
            advertise=advertise,
            etcd=EtcdOptions(etcd, etcd_tls, etcd_user, etcd_password_file),
            max_runs=max_runs,
        )
        roots = _several(context, "root", root or ())
        modes = _several(context, "watch", watch or ())

        async def run() -> Exit:
            return await _serve("worker.daemon", worker_config(options, roots, group, modes))

        finish(run)


def _strength(context: typer.Context, name: str) -> int:
    source: Any = context.get_parameter_source(name)
    return _STRENGTH.index(source.name) if source is not None and source.name in _STRENGTH else 0


def _stronger(
    context: typer.Context, tls: Path | None, *, insecure: bool
) -> tuple[Path | None, bool]:
    """Let the flag speak before the environment, and that before the file, of these two as well."""
    if tls is not None and insecure:
        of_tls, of_insecure = _strength(context, "tls"), _strength(context, "insecure")
        if of_tls != of_insecure:
            return (tls, False) if of_tls > of_insecure else (None, True)
    return tls, insecure


def _several(context: typer.Context, name: str, told: Sequence[str]) -> Sequence[str]:
    """Return the values of the strongest source; paths may hold blanks, so commas part them."""
    environment = os.environ.get(f"BATON_{name.upper()}", "")
    if environment and _strength(context, name) < _STRENGTH.index("ENVIRONMENT"):
        return [text.strip() for text in environment.split(",") if text.strip()]
    return told


async def _serve(module: str, config: object) -> Exit:
    """Run a process until it was asked to stop; only then is its code loaded."""
    await importlib.import_module(module).run(config)
    return Exit.DONE
