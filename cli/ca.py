"""`baton ca`: the cluster's certificate authority and what it issues."""

from pathlib import Path
from typing import Annotated

import typer

from cli.command import finish
from cli.exits import Exit
from cli.group import new_group
from cli.output import say
from wire.authority import init_ca, issue
from wire.identity import Role

app = new_group()


@app.command("init")
def init(
    directory: Annotated[Path, typer.Argument(metavar="CADIR", help="Where it shall be kept.")],
    cluster: Annotated[str, typer.Option("--cluster", metavar="NAME", help="A DNS label.")],
) -> None:
    """Make the certificate authority of a cluster."""

    async def run() -> Exit:
        path = init_ca(directory, cluster)
        say(f"authority of cluster {cluster} in {path.parent}; keep ca.key to yourself")
        return Exit.DONE

    finish(run)


@app.command("issue")
def issue_(
    directory: Annotated[Path, typer.Argument(metavar="CADIR", help="The authority.")],
    role: Annotated[Role, typer.Argument(help="What the certificate is for.")],
    name: Annotated[str, typer.Argument(help="Whom it names: a DNS label.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Good for --tls afterwards.")],
    host: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="NAME-OR-IP", help="A further name. May be repeated."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the key that is there.")
    ] = False,
) -> None:
    """Issue a certificate, with a new key."""

    async def run() -> Exit:
        issued = issue(directory, role, name, out, hosts=host or (), replace=replace)
        say(f"{issued.identity} in {issued.directory}, valid until {issued.not_after.date()}")
        return Exit.DONE

    finish(run)
