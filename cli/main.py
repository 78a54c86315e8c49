"""The `baton` command: the tree of commands, each group loaded only when it is used."""

import importlib
import os
import sys
from typing import Any

import typer
import typer.core
import typer.main

_GROUPS = {
    "up": ("cli.up", "Run everything on this machine: etcd, one coordinator, one worker."),
    "status": ("cli.status", "The cluster at a glance."),
    "coordinator": ("cli.coordinators", "Start and list coordinators."),
    "worker": ("cli.workers", "Start, add, list, show, remove and test workers."),
    "job": ("cli.jobs", "Apply, add, list, show, delete, run, preview and explain jobs."),
    "run": ("cli.runs", "List, show, follow, approve and cancel runs."),
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


def main() -> None:
    """Run the command line; leaves with one of `cli.exits.Exit`."""
    try:
        app()
    except BrokenPipeError:  # whoever read the output has gone: `baton job list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
