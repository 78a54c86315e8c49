"""A coordinator's own key: that it is there, where, and that its name is its own."""

import asyncio
import json
import os
import secrets
from pathlib import Path

import msgspec
import structlog

from coordinator.errors import CoordinatorError, StoreError
from coordinator.keys import Keys
from coordinator.lease_session import EndReason, LeasePool, LeaseSession, revoke_quietly
from coordinator.records import BadRecord, CoordinatorRecord, decode, encode
from coordinator.store import Compare, Field, Put, Store
from wire.clock import Clock

log = structlog.get_logger()

TTL_S = 5
"""The lease of a coordinator's presence, in seconds."""
_PATIENCE_S = TTL_S + 1.5
_LOOK_S = 0.2
_AFTER_FAILURE_S = 0.5


class NameInUse(CoordinatorError):
    """Another live coordinator has the name."""


class Presence:
    """`coordinators/NAME`, bound to the node's lease and put again whenever that is replaced."""

    def __init__(
        self, store: Store, keys: Keys, clock: Clock, leases: LeasePool, name: str
    ) -> None:
        """Say nothing yet."""
        self._store = store
        self._key = keys.coordinator(name)
        self._clock = clock
        self._leases = leases
        self._name = name
        self._record: CoordinatorRecord | None = None
        self._changed = asyncio.Event()
        self.instance = secrets.token_hex(8)

    async def claim(self, record: CoordinatorRecord) -> None:
        """Take the name; raise NameInUse when another process keeps it beyond its lease."""
        until = self._clock.now() + _PATIENCE_S
        while True:
            session = await self._leases.session(TTL_S)
            holder = await self._put(record, session)
            if holder is None:
                return
            if self._clock.now() >= until:
                raise NameInUse(
                    f"coordinator {self._name} is running already, at {holder.address} since "
                    f"{holder.since.isoformat(timespec='seconds')}: stop that one, or choose "
                    "another --name"
                )
            await self._clock.sleep(_LOOK_S)

    def say(self, record: CoordinatorRecord) -> None:
        """Have `keep` write another record soon."""
        self._record = record
        self._changed.set()

    async def keep(self, record: CoordinatorRecord) -> None:
        """Put the key again after a loss of the lease, and after `say`; runs until cancelled."""
        self._record = record
        while True:
            session = await self._leases.session(TTL_S)
            self._changed.clear()
            try:
                holder = await self._put(self._record, session)
            except StoreError as error:
                log.warning("presence_not_written", why=str(error))
                await self._clock.sleep(_AFTER_FAILURE_S)
                continue
            if holder is not None:
                log.error("name_taken_over", name=self._name, by=holder.address)
                raise NameInUse(f"coordinator {self._name} was replaced by one at {holder.address}")
            waiting: list[asyncio.Task[object]] = [
                asyncio.create_task(session.ended()),
                asyncio.create_task(self._changed.wait()),
            ]
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in waiting:
                    one.cancel()

    async def _put(
        self, record: CoordinatorRecord, session: LeaseSession
    ) -> CoordinatorRecord | None:
        """Write the key unless another instance has it; return that one's record then."""
        kv = await self._store.get(self._key)
        if kv is not None:
            try:
                held = decode(kv.value, CoordinatorRecord)
            except BadRecord:
                held = None
            if held is not None and held.instance != self.instance:
                return held
        mine = Put(self._key, encode(record), session.lease_id)
        revision = kv.mod_revision if kv is not None else 0
        result = await self._store.txn([Compare(self._key, Field.MOD, revision)], [mine])
        return None if result.succeeded else await self._put(record, session)


class PreviousLife:
    """The leases of this node's last process, by the state directory, so that a restart waits for none.

    Whoever holds the lock on the state directory knows that the last process is dead.
    """

    def __init__(self, directory: Path) -> None:
        """Remember leases in this directory."""
        self._path = directory / "leases.json"
        self._mine: set[int] = set()
        self._is_stale = False
        self._writes: set[asyncio.Task[None]] = set()

    async def bury(self, store: Store) -> None:
        """Revoke what the last process left; its jobs are free at once."""
        for lease_id in await asyncio.to_thread(self._read):
            await revoke_quietly(store, lease_id)

    def session_started(self, session: LeaseSession) -> None:
        """Remember a lease; called by the pool."""
        self._mine.add(session.lease_id)
        self._save()

    def session_ended(self, session: LeaseSession, reason: EndReason) -> None:  # noqa: ARG002
        """Forget a lease; called by the pool."""
        self._mine.discard(session.lease_id)
        self._save()

    def _save(self) -> None:
        """Have the file written soon; one writer at a time, which writes what is true by then."""
        self._is_stale = True
        if all(task.done() for task in self._writes):
            writing = asyncio.create_task(self._keep_written())
            self._writes.add(writing)
            writing.add_done_callback(self._writes.discard)

    async def _keep_written(self) -> None:
        while self._is_stale:
            self._is_stale = False
            await asyncio.to_thread(self._write, sorted(self._mine))

    def _read(self) -> list[int]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[int])
        except (OSError, msgspec.DecodeError):
            return []

    def _write(self, leases: list[int]) -> None:
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_text(json.dumps(leases))
            os.replace(fresh, self._path)  # noqa: PTH105 - the atomic one, by its name
        except OSError as error:
            log.warning("leases_not_remembered", path=str(self._path), why=str(error))
