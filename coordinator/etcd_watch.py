"""Following a prefix over member failures, compactions and expired tokens, without losing an event.

Each watch has a stream of its own, so that no answer can be taken for another watch's. A progress
request every half second is its heartbeat; the revision in the answer is not used, since it is not in
order with the events before etcd 3.4.25 and 3.5.8.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from coordinator.errors import StoreDenied, StoreError, StoreUnavailable
from coordinator.etcd_connection import Connection, RpcFailed, Stream, Verdict, silence
from coordinator.etcd_messages import RANGE, WATCH, kv, rpc
from coordinator.etcd_transport import Transport
from coordinator.store import Changed, Changes, Deleted, KeyValue, Snapshot

_HEARTBEAT_S = 0.5
_PAUSE_S = 0.05
_QUEUE_LIMIT = 1000

Item = Snapshot | Changes


def prefix_end(prefix: str) -> bytes:
    """Return the end of the range of all keys that begin with a non-empty prefix."""
    end = prefix.encode()
    return end[:-1] + bytes([end[-1] + 1])  # UTF-8 has no byte 0xff


def key_value(found: Any) -> KeyValue:
    """Turn etcd's KeyValue into ours."""
    return KeyValue(
        found.key.decode(),
        found.value,
        found.create_revision,
        found.mod_revision,
        found.version,
        found.lease,
    )


class Watch:
    """One prefix followed for one consumer."""

    def __init__(
        self, transport: Transport, prefix: str, read: Callable[[str], Awaitable[Snapshot]]
    ) -> None:
        # Fixed at construction.
        self._transport = transport
        self._prefix = prefix
        self._read_range = read
        # Owned by the task that runs `_run`.
        self._revision = 0
        """Everything up to here was handed on; 0 asks for a snapshot."""
        self._cluster_id = 0
        self._heard_at = 0.0
        self._asked_at = 0.0
        # Shared with the consumer, on the loop.
        self._queue: asyncio.Queue[Item | None] = asyncio.Queue()
        self._has_room = asyncio.Event()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncIterator[Item]]:
        """Follow until the block is left."""
        task = asyncio.create_task(self._run(), name=f"etcd-watch {self._prefix}")
        task.add_done_callback(lambda _: self._queue.put_nowait(None))
        try:
            yield self._items(task)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _items(self, task: "asyncio.Task[None]") -> AsyncIterator[Item]:
        while True:
            item = await self._queue.get()
            if self._queue.qsize() < _QUEUE_LIMIT:
                self._has_room.set()
            if item is None:
                await task  # raises what ended the watch
                return
            yield item

    async def _run(self) -> None:
        while True:
            if self._revision == 0:
                await self._snapshot()
            connection = await self._transport.connection()
            token = None
            try:
                token = await self._transport.stream_token(connection)
                await self._check_revision()
                await self._follow(connection, token)
            except RpcFailed as failed:
                match failed.verdict:
                    case Verdict.COMPACTED:
                        self._revision = 0
                    case Verdict.AUTHENTICATE:
                        self._transport.forget_token(token)
                        await asyncio.sleep(_PAUSE_S)
                    case Verdict.GIVE_UP:
                        raise failed.error() from failed
                    case _:
                        self._transport.leave(connection, failed.said)
            except StoreDenied:
                raise
            except StoreError:
                await asyncio.sleep(_PAUSE_S)

    async def _snapshot(self) -> None:
        while True:
            try:
                snapshot = await self._read_range(self._prefix)
            except StoreUnavailable:
                await asyncio.sleep(_PAUSE_S)
            else:
                self._revision = snapshot.revision
                self._queue.put_nowait(snapshot)
                return

    async def _check_revision(self) -> None:
        """Start over when the cluster's revision is behind ours: it was restored from a backup."""
        answer = await self._read_range_count()
        cluster_id = answer.header.cluster_id
        if answer.header.revision < self._revision or self._cluster_id not in {0, cluster_id}:
            self._cluster_id = cluster_id
            await self._snapshot()
        self._cluster_id = cluster_id

    async def _read_range_count(self) -> Any:
        request = RANGE.request(
            key=self._prefix.encode(), range_end=prefix_end(self._prefix), count_only=True
        )
        return await self._transport.call(RANGE, request, resend=True)

    async def _follow(self, connection: Connection, token: str | None) -> None:
        """Hand on what one stream gives until it fails; raises RpcFailed."""
        stream = connection.stream(WATCH, token=token)
        create = rpc.WatchCreateRequest(
            key=self._prefix.encode(),
            range_end=prefix_end(self._prefix),
            start_revision=self._revision + 1,
        )
        try:
            async with asyncio.timeout(self._transport.attempt_s):
                await stream.write(WATCH.request(create_request=create))
            self._heard_at = self._asked_at = asyncio.get_running_loop().time()
            reader = asyncio.create_task(self._read(stream))
            heart = asyncio.create_task(self._beat(stream))
            try:
                done, _ = await asyncio.wait({reader, heart}, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                reader.cancel()
                heart.cancel()
                await asyncio.gather(reader, heart, return_exceptions=True)
        except TimeoutError:
            raise silence("a watch", self._transport.attempt_s) from None
        finally:
            stream.cancel()

    async def _read(self, stream: Stream) -> None:
        loop = asyncio.get_running_loop()
        while True:
            message = await stream.read()
            self._heard_at = loop.time()
            if message.canceled:
                await self._canceled(message)
            if message.events:
                self._hand_on(message)
            while self._queue.qsize() >= _QUEUE_LIMIT:
                # Not reading is how a stream says so; silence is ours now, not the member's.
                self._has_room.clear()
                self._asked_at = float("inf")
                await self._has_room.wait()
                self._asked_at = loop.time()

    def _hand_on(self, message: Any) -> None:
        events: list[Changed | Deleted] = []
        for event in message.events:
            if event.kv.mod_revision <= self._revision:
                continue
            if event.type == kv.Event.DELETE:
                events.append(Deleted(event.kv.key.decode(), event.kv.mod_revision))
            else:
                events.append(Changed(key_value(event.kv)))
        if events:
            # Without `fragment`, etcd never splits the events of one revision.
            self._revision = message.events[-1].kv.mod_revision
            self._queue.put_nowait(Changes(self._revision, tuple(events)))

    async def _canceled(self, message: Any) -> None:
        """Raise what a cancelled watch means."""
        if message.compact_revision:
            raise RpcFailed(
                Verdict.COMPACTED, "compacted", maybe_done=False, raises=StoreUnavailable
            )
        said = message.cancel_reason or "the watch was cancelled"
        if "permission denied" in said or "auth" in said:
            # Said of an expired token too: a range knows better, and raises StoreDenied if so.
            await self._read_range(self._prefix)
            raise RpcFailed(Verdict.AUTHENTICATE, said, maybe_done=False, raises=StoreDenied)
        raise RpcFailed(Verdict.LEAVE, said, maybe_done=False, raises=StoreUnavailable)

    async def _beat(self, stream: Stream) -> None:
        """Ask for a sign of life twice a second; raises RpcFailed when none comes."""
        loop = asyncio.get_running_loop()
        attempt_s = self._transport.attempt_s
        request = WATCH.request(progress_request=rpc.WatchProgressRequest())
        while True:
            await asyncio.sleep(_HEARTBEAT_S)
            async with asyncio.timeout(attempt_s):
                await stream.write(request)
            asked_at = loop.time()
            while self._heard_at < asked_at:
                waited_s = loop.time() - max(asked_at, self._asked_at)
                if waited_s > attempt_s:
                    # The loop may have been blocked with the answer waiting in the socket.
                    await asyncio.sleep(_PAUSE_S)
                    if self._heard_at < asked_at:
                        raise silence("a watch", attempt_s)
                await asyncio.sleep(min(_PAUSE_S, attempt_s))
