"""One LeaseKeepAlive stream for all leases of a store.

Answers come in the order of the requests. An unanswered request is the heartbeat that finds a silent
member: the stream moves to another one and sends again at once.
"""

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass

from coordinator.errors import StoreDenied
from coordinator.etcd_connection import RpcFailed, Stream, Verdict, silence
from coordinator.etcd_messages import LEASE_KEEP_ALIVE
from coordinator.etcd_transport import Transport

_PAUSE_S = 0.05


@dataclass(slots=True)
class _Renewal:
    lease_id: int
    patience_s: float
    """How long a member may take to answer it."""
    answer: "asyncio.Future[float]"
    sent_at: float = 0.0
    """On the loop's clock, in the present stream."""


class LeaseRenewer:
    """Sends renewals for any number of leases over one stream, for as long as there are any."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        # Owned by the event loop.
        self._unsent: deque[_Renewal] = deque()
        self._unanswered: deque[_Renewal] = deque()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def renew(self, lease_id: int, *, patience_s: float, total_s: float) -> float:
        """Renew once; return the TTL, 0 when the lease is gone. Raises StoreUnavailable."""
        renewal = _Renewal(lease_id, patience_s, asyncio.get_running_loop().create_future())
        self._unsent.append(renewal)
        self._wake.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="etcd-lease-keepalive")
        try:
            async with asyncio.timeout(total_s):
                return await renewal.answer
        except TimeoutError:
            # A renewal that was sent stays in line: its answer must not pass for the next one's.
            with contextlib.suppress(ValueError):
                self._unsent.remove(renewal)
            raise self._transport.unavailable("renewing a lease") from None

    async def close(self) -> None:
        """End the stream; renewals under way raise StoreUnavailable."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for renewal in (*self._unanswered, *self._unsent):
            if not renewal.answer.done():
                renewal.answer.set_exception(self._transport.unavailable("the store is closed"))

    async def _run(self) -> None:
        while True:
            while not self._unsent:
                self._wake.clear()
                await self._wake.wait()
            connection = await self._transport.connection()
            token = None
            try:
                token = await self._transport.stream_token(connection)
                stream = connection.stream(LEASE_KEEP_ALIVE, token=token)
                try:
                    await self._pump(stream)
                finally:
                    stream.cancel()
            except StoreDenied as denied:
                self._fail_all(denied)
            except RpcFailed as failed:
                match failed.verdict:
                    case Verdict.AUTHENTICATE:
                        self._transport.forget_token(token)
                    case Verdict.GIVE_UP:
                        self._fail_all(failed.error())
                    case _:
                        self._transport.leave(connection, failed.said)
            self._unsent.extendleft(
                renewal for renewal in reversed(self._unanswered) if not renewal.answer.done()
            )
            self._unanswered.clear()

    def _fail_all(self, error: Exception) -> None:
        for renewal in (*self._unanswered, *self._unsent):
            if not renewal.answer.done():
                renewal.answer.set_exception(error)
        self._unsent.clear()
        self._unanswered.clear()

    async def _pump(self, stream: Stream) -> None:
        """Send and receive until the stream fails or the member is silent; raises RpcFailed."""
        loop = asyncio.get_running_loop()
        reader = asyncio.create_task(self._read(stream), name="etcd-lease-answers")
        try:
            while True:
                self._wake.clear()
                while self._unsent:
                    renewal = self._unsent.popleft()
                    if renewal.answer.done():
                        continue
                    renewal.sent_at = loop.time()
                    self._unanswered.append(renewal)
                    await self._write(stream, renewal.lease_id)
                wake = asyncio.create_task(self._wake.wait())
                try:
                    await asyncio.wait(
                        {reader, wake},
                        timeout=self._left_s(),
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                finally:
                    wake.cancel()
                if reader.done():
                    reader.result()
                if self._left_s() == 0:
                    # The loop may have been blocked with the answer waiting in the socket.
                    await asyncio.sleep(_PAUSE_S)
                    if self._left_s() == 0:
                        least_s = min(renewal.patience_s for renewal in self._unanswered)
                        raise silence("the lease stream", least_s)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _write(self, stream: Stream, lease_id: int) -> None:
        try:
            async with asyncio.timeout(self._transport.attempt_s):
                await stream.write(LEASE_KEEP_ALIVE.request(ID=lease_id))
        except TimeoutError:
            raise silence("the lease stream", self._transport.attempt_s) from None

    def _left_s(self) -> float | None:
        """Return how long the renewals sent may still go unanswered; None when there are none."""
        if not self._unanswered:
            return None
        until = min(renewal.sent_at + renewal.patience_s for renewal in self._unanswered)
        return max(0.0, until - asyncio.get_running_loop().time())

    async def _read(self, stream: Stream) -> None:
        while True:
            message = await stream.read()
            for renewal in self._unanswered:
                if renewal.lease_id == message.ID:
                    self._unanswered.remove(renewal)
                    if not renewal.answer.done():
                        renewal.answer.set_result(float(max(0, message.TTL)))
                    break
