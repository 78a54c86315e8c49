"""What every client command has in common: its options, its connection, and how it ends.

A command is a coroutine whose first parameter is a `Call`; the rest are its own arguments. `remote`
registers it with the shared options added, connects, and turns errors into exit codes.
"""

import asyncio
import inspect
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.client import Client, connect
from cli.exits import EXPECTED, Exit, NobodyAnswered, exit_of_error
from cli.output import Format, print_json, say
from cli.settings import ClientSettings, Flags, resolve

DEFAULT_TIMEOUT_S = 10.0
_INTERRUPTED = 130
"""What a shell expects of a command that Ctrl-C ended."""
_UNWIND_S = 3.0
"""How long an interrupted command may take to hang up."""

_COORDINATOR = Annotated[
    str | None,
    typer.Option(
        "--coordinator",
        metavar="HOST:PORT[,...]",
        help="Whom to ask; the first that answers serves. [env: BATON_COORDINATORS]",
    ),
]
_TLS = Annotated[
    Path | None,
    typer.Option("--tls", metavar="DIR", help="Your ca.pem, cert.pem, key.pem. [env: BATON_TLS]"),
]
_INSECURE = Annotated[bool, typer.Option("--insecure", help="For a cluster without certificates.")]
_TIMEOUT = Annotated[
    float,
    typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long to wait for an answer."),
]
_OUTPUT = Annotated[Format, typer.Option("--output", "-o", help="How to print the result.")]

Body = Callable[..., Awaitable[Exit | None]]
OnNobody = Callable[[ClientSettings, Format, NobodyAnswered], Exit]


@dataclass(frozen=True, slots=True)
class Call:
    """One use of a client command."""

    settings: ClientSettings
    timeout_s: float
    format: Format
    client: Client
    """A coordinator that answers."""

    @property
    def wants_json(self) -> bool:
        """Whether one JSON document is wanted."""
        return self.format is Format.JSON

    def show(self, value: Any, as_text: Callable[[], None]) -> None:
        """Print a result in the form that is wanted."""
        if self.wants_json:
            print_json(value)
        else:
            as_text()


def remote(
    app: typer.Typer,
    name: str,
    *,
    output: bool = True,
    repeatable: bool = True,
    on_nobody: OnNobody | None = None,
) -> Callable[[Body], Body]:
    """Register a coroutine as a client command.

    `output` gives it `-o`. A `repeatable` one, which may happen twice, is tried with the next
    coordinator when the one that served falls silent. `on_nobody` says how the command ends when none
    answers at all.
    """

    def register(body: Body) -> Body:
        own = list(inspect.signature(body).parameters.values())[1:]
        shared: list[tuple[str, Any, Any]]
        shared = [("coordinator", _COORDINATOR, None), ("tls", _TLS, None)]
        shared += [("insecure", _INSECURE, False), ("timeout", _TIMEOUT, DEFAULT_TIMEOUT_S)]
        if output:
            shared.append(("output", _OUTPUT, Format.TEXT))
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [parameter.replace(kind=keyword) for parameter in own]
        parameters += [
            inspect.Parameter(name, keyword, default=default, annotation=annotation)
            for name, annotation, default in shared
        ]

        def command(**arguments: Any) -> None:
            flags = Flags(*(arguments.pop(key) for key in ("coordinator", "tls", "insecure")))
            timeout_s = arguments.pop("timeout")
            wanted = arguments.pop("output", Format.TEXT)

            async def run() -> Exit:
                settings = resolve(flags, os.environ)
                try:
                    return await serve(settings)
                except NobodyAnswered as silence:
                    if on_nobody is None:
                        raise
                    return on_nobody(settings, wanted, silence)

            async def serve(settings: ClientSettings) -> Exit:
                silent: frozenset[str] = frozenset()
                left_s = timeout_s
                while True:
                    async with connect(settings, left_s, without=silent) as client:
                        call = Call(settings, timeout_s, wanted, client)
                        try:
                            return await body(call, **arguments) or Exit.DONE
                        except NobodyAnswered:
                            silent |= {client.address}
                            if not repeatable or silent >= set(settings.coordinators):
                                raise
                            left_s = client.remaining_s

            finish(run)

        command.__doc__ = body.__doc__
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        app.command(name)(command)
        return body

    return register


def _interrupt(task: "asyncio.Task[Exit]") -> None:
    """End the command; whatever its connections still wait for, it does not outlive this for long."""
    task.cancel()
    deadline = threading.Timer(_UNWIND_S, os._exit, (_INTERRUPTED,))
    deadline.daemon = True
    deadline.start()


def finish(run: Callable[[], Awaitable[Exit]]) -> None:
    """Run a command to its end and leave with its exit code; expected errors are a sentence."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC would write its own view of errors

    async def main() -> Exit:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, _interrupt, task)
        return await run()

    try:
        code = asyncio.run(main())
    except EXPECTED as error:
        say(f"baton: {error}")
        code = exit_of_error(error)
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(_INTERRUPTED) from None
    if code is not Exit.DONE:
        raise typer.Exit(int(code))
