"""Calls to an etcd cluster: which member serves, when to leave it, who we are.

One member serves at a time. Whoever finds it dead, hung or without a quorum calls `leave`; one task
then races a linearizable read on the members, and the first to answer serves. Knows messages only to
authenticate.
"""

import asyncio
import contextlib
from typing import Any

from coordinator.errors import StoreDenied, StoreUnavailable
from coordinator.etcd_config import Endpoint, EtcdConfig
from coordinator.etcd_connection import Connection, RpcFailed, Verdict
from coordinator.etcd_messages import AUTHENTICATE, Method

_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.1
_LOGINS_PER_CALL = 3


class Transport:
    """The one way to etcd's members for unary calls, streams and watches."""

    def __init__(self, config: EtcdConfig) -> None:
        # Fixed at construction.
        self._config = config
        self._endpoints = config.parsed
        self.attempt_s = config.attempt_s
        self.total_s = config.total_s
        # Owned by the event loop.
        self._serving: Connection | None = None
        self._switching: asyncio.Task[None] | None = None
        self._answers: dict[str, str] = {}
        self._token: str | None = None
        self._login = asyncio.Lock()
        self._is_closed = False
        self.switches = 0
        """How often the serving member was left."""

    @property
    def serving(self) -> str | None:
        """HOST:PORT of the member in use; None while there is none."""
        return None if self._serving is None else self._serving.endpoint.target

    async def connection(self) -> Connection:
        """Return the connection in use; waits for a switch under way, for as long as it takes."""
        while self._switching is not None:
            await asyncio.wait([self._switching])
        if self._is_closed:
            raise StoreUnavailable("the store is closed")
        if self._serving is None:
            self._serving = Connection(self._endpoints[0], self._config.tls)
        return self._serving

    def leave(self, connection: Connection, why: str) -> None:
        """Stop using a connection that failed; does nothing when it is no longer in use."""
        if connection is not self._serving or self._switching is not None or self._is_closed:
            return
        self._answers[connection.endpoint.url] = why
        self.switches += 1
        self._switching = asyncio.get_running_loop().create_task(
            self._switch(connection), name="etcd-switch"
        )

    async def call(
        self, method: Method, request: Any, *, resend: bool, total_s: float | None = None
    ) -> Any:
        """Call a method at whichever member serves.

        A request whose answer was lost is sent again only with `resend`. Raises StoreUnavailable past
        `total_s`, the other store errors as they are, and RpcFailed for the verdicts COMPACTED,
        EXISTS and NO_AUTH, which only some callers know what to do about.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.total_s if total_s is None else total_s)
        logins = 0
        while True:
            connection = await self._connection_by(deadline, method)
            left_s = deadline - loop.time()
            if left_s <= 0:
                raise self.unavailable(method.path)
            try:
                token = await self._token_for(connection)
                return await connection.unary(
                    method, request, timeout_s=min(self.attempt_s, left_s), token=token
                )
            except RpcFailed as failed:
                self._answers[connection.endpoint.url] = failed.said
                match failed.verdict:
                    case Verdict.LEAVE:
                        self.leave(connection, failed.said)
                    case Verdict.AGAIN:
                        await asyncio.sleep(_PAUSE_S)
                    case Verdict.AUTHENTICATE:
                        logins += 1
                        if self._config.user is None or logins > _LOGINS_PER_CALL:
                            raise failed.error() from failed
                        self.forget_token(token)
                    case Verdict.GIVE_UP:
                        raise failed.error() from failed
                    case _:
                        raise
                if failed.maybe_done and not resend:
                    raise self.unavailable(f"{method.path}: no answer, perhaps done") from failed

    async def stream_token(self, connection: Connection) -> str | None:
        """Return the token for a stream on this connection; raises RpcFailed or StoreDenied."""
        return await self._token_for(connection)

    def forget_token(self, token: str | None) -> None:
        """Have the next call authenticate anew, unless another one has done so already."""
        if self._token == token:
            self._token = None

    def unavailable(self, what: str) -> StoreUnavailable:
        """Return the error that names every endpoint and what it answered last."""
        urls = [endpoint.url for endpoint in self._endpoints]
        return StoreUnavailable(what, {url: self._answers.get(url, "not tried") for url in urls})

    async def close(self) -> None:
        """Close every connection; calls in flight and to come raise StoreUnavailable."""
        self._is_closed = True
        if self._switching is not None:
            self._switching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._switching
        if self._serving is not None:
            await self._serving.close()

    async def _connection_by(self, deadline: float, method: Method) -> Connection:
        try:
            async with asyncio.timeout_at(deadline):
                return await self.connection()
        except TimeoutError:
            raise self.unavailable(method.path) from None

    async def _token_for(self, connection: Connection) -> str | None:
        if self._config.user is None:
            return None
        async with self._login:
            if self._token is None:
                request = AUTHENTICATE.request(
                    name=self._config.user, password=self._config.password
                )
                try:
                    answer = await connection.unary(
                        AUTHENTICATE, request, timeout_s=max(self.attempt_s, 1.0)
                    )
                except RpcFailed as failed:
                    if failed.verdict is Verdict.NO_AUTH:
                        return None
                    if failed.verdict is Verdict.GIVE_UP:
                        raise StoreDenied(
                            f"etcd user {self._config.user}: {failed.said}"
                        ) from failed
                    failed.maybe_done = False  # the call itself was not sent
                    raise
                self._token = answer.token
            return self._token

    async def _switch(self, left: Connection) -> None:
        """Race the members until one with a quorum answers, then use it and close the one left."""
        others = [endpoint for endpoint in self._endpoints if endpoint != left.endpoint]
        runners = {
            asyncio.create_task(self._run(endpoint, 0.0), name=f"etcd-probe {endpoint.url}")
            for endpoint in others or [left.endpoint]
        }
        if others:  # the one that was left may be the one that comes back
            runners.add(asyncio.create_task(self._run(left.endpoint, self.attempt_s)))
        try:
            done, _ = await asyncio.wait(runners, return_when=asyncio.FIRST_COMPLETED)
            self._serving = done.pop().result()
        finally:
            for runner in runners:
                runner.cancel()
            for ended in await asyncio.gather(*runners, return_exceptions=True):
                if isinstance(ended, Connection) and ended is not self._serving:
                    await ended.close()
            self._switching = None
            await left.close()

    async def _run(self, endpoint: Endpoint, delay_s: float) -> Connection:
        """Probe one member until it answers with a quorum."""
        await asyncio.sleep(delay_s)
        pause_s = _PAUSE_S
        connection = Connection(endpoint, self._config.tls)
        try:
            while True:
                try:
                    await connection.probe(timeout_s=self.attempt_s, token=self._token)
                except RpcFailed as failed:
                    self._answers[endpoint.url] = failed.said
                else:
                    return connection
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        except asyncio.CancelledError:
            await connection.close()
            raise
