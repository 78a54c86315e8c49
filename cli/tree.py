"""The tree of commands, each group loaded only when it is used."""

import importlib
from typing import Any

import typer
import typer.core
import typer.main

_GROUPS = {
    "up": ("cli.up", "Run everything on this machine: etcd, one coordinator, one worker."),
    "status": ("cli.status", "The cluster at a glance."),
    "watch": ("cli.watch", "The same, live, full screen."),
    "doctor": ("cli.doctor", "Check this machine and the cluster; say what to do."),
    "coordinator": ("cli.coordinators", "Start, list, drain and undrain coordinators."),
    "worker": ("cli.workers", "Start, add, list, show, remove and test workers."),
    "job": ("cli.jobs", "Apply, add, edit, show, run, pause, restart, explain jobs, and more."),
    "run": ("cli.runs", "List, show, follow, approve and cancel runs."),
    "verify": ("cli.verify", "Compare the members of a job by content."),
    "trash": ("cli.trash", "List, bring back and remove what runs put aside."),
    "ledger": ("cli.ledger", "Prove that no due instant is missing, double or tampered with."),
    "chaos": ("cli.chaos.command", "Trouble a cluster of its own, and check what Baton promises."),
    "ca": ("cli.ca", "Make the cluster's certificates."),
}


class _LazyGroup(typer.core.TyperGroup):
    """Lists commands by a line each, and imports a group's module when it is called.

    gRPC, protobuf and the rest take longer to load than `--help` may take.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name in _GROUPS:
            module = importlib.import_module(_GROUPS[name][0])
            command = typer.main.get_command(module.app)
        return name, command, rest


app = typer.Typer(
    cls=_LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        metadata = importlib.import_module("importlib.metadata")
        typer.echo(f"baton {metadata.version('baton')}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Highly available file replication."""


def _placeholder() -> None:
    raise AssertionError("the group's own module answers")


for _name, (_module, _help) in _GROUPS.items():
    app.command(_name, help=_help)(_placeholder)
