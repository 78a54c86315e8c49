"""One watched root: a thread that sees what changes, lets it settle and journals it.

Whatever goes wrong with events (the queue overflows, the root is unmounted, the journal's disk is full)
has one answer: begin anew. Beginning compares all of the tree with the index, between events, so nothing
that happened meanwhile is lost, and nothing that did not is pending.
"""

import contextlib
import os
import queue
import select
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from syncengine.errors import TreeError
from syncengine.names import parent_of
from syncengine.tree import Tree
from worker.watching.clocks import Clocks
from worker.watching.errors import JournalUnusable
from worker.watching.events import Events, EventsLost, QueueOverflowed, RootGone
from worker.watching.identity import RootIdentity
from worker.watching.index import TOP, UNSURE, TreeIndex, look_of
from worker.watching.journal import Change, ChangeJournal
from worker.watching.network_files import shared_by_hosts
from worker.watching.pending import Consumer
from worker.watching.settling import Settled, Settling
from worker.watching.state import NOT_WATCHED, WatchPhase, WatchSource, WatchState
from worker.watching.store import Store
from worker.watching.survey import Survey, Trouble
from worker.watching.tops import Tops
from worker.watching.watched_tree import WatchedTree

log = structlog.get_logger()

TOGETHER_S = 0.002
"""What settles so soon is journaled with what settled."""

SLICE_S = 0.01
"""How long directories are looked at before events are taken again."""

ROOT_CHECK_S = 2.0
"""How often it is looked whether the root is still there, or there again."""

POLL_S = 10.0
"""How often that is scanned of which no event tells; seldomer when a scan takes over a tenth of it."""

REFRESH_S = 1.0
REFRESH_AGE_S = 2.1
"""When the index takes up what has changed: later than `SETTLED_NS`, so that it rests on times that no
later change can share."""

REFRESH_MOST = 300
REFRESH_BUSY_S = 0.1
"""So many entries at once, and how soon the next: nothing else is done meanwhile."""

SEEN_EVERY_S = 10.0
RETRY_S = 2.0

_INDEXED = "indexed"
_SEEN_UNTIL = "seen_until"


class _OtherTops(Exception):
    """Other directories than before are to be watched."""


class _Watched:
    """What exists while the root is there."""

    def __init__(self, root_fd: int, tops: Tops, watch: "RootWatch") -> None:
        self.tree = WatchedTree(root_fd)
        self.tops = tops
        self.settling = Settling(watch.settle_s)
        store, index, journal = watch.store, watch.index, watch.journal
        self.survey = Survey(self.tree, tops, store, index, journal, watch.clocks.wall)
        self.events = Events(
            self.tree, tops, self.survey, self.settling, store, index, journal, watch.clocks
        )
        self.gone: set[bytes] = set()
        """Paths that were found gone, or too young, by the last refresh of the index."""
        self.network = shared_by_hosts(root_fd)
        self.mounts = _mounts()
        self.poller = select.poll()
        self.poller.register(self.tree.inotify.fd, select.POLLIN)
        self.poller.register(watch.wake_fd, select.POLLIN)


class RootWatch:
    """Watches one root from `start` to `stop`. Its other methods may be called from any thread."""

    def __init__(
        self,
        name: str,
        path: Path,
        file: Path,
        *,
        tell: Callable[[Iterable[Consumer]], None],
        clocks: Clocks | None = None,
        settle_s: float = 0.05,
    ) -> None:
        """Open the journal `file`; raises JournalUnusable. `tell` hears who has news, in the thread."""
        self.name = name
        self.path = path
        self.clocks = clocks or Clocks()
        self.settle_s = settle_s
        self.store = Store(file)
        self.index = TreeIndex(self.store)
        self.journal = ChangeJournal(
            self.store, monotonic=self.clocks.monotonic, wall=self.clocks.wall
        )
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.overflows = 0
        """How often events were lost."""
        self._identity = RootIdentity(self.store, path)
        self._tell = tell
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiters: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None
        self._is_stopping = False
        # Owned by the thread from here on.
        self._watched: _Watched | None = None
        self._state = NOT_WATCHED
        self._why = ""
        self._is_beginning = False
        self._has_lost = False
        """Whether it begins anew because something went wrong."""
        self._doubt: float | None = None
        self._poll_began: tuple[float, float] | None = None
        self._due = dict.fromkeys(("root", "refresh", "seen", "poll", "begin"), 0.0)

    # From any thread

    def start(self) -> None:
        """Begin to watch, for the consumers that the journal knows; harmless when it began."""
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._run, name=f"watch-{self.name}", daemon=True)
        self._state = self._begun_state("begins to watch")
        self._thread.start()

    def stop(self) -> None:
        """Stop watching and close the journal; blocks until both are done."""
        self._is_stopping = True
        self._wake()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(JournalUnusable):
            self.store.close()
        os.close(self.wake_fd)

    def state(self) -> WatchState:
        """Return how it is watched now."""
        return self._state

    def register(self, consumer: Consumer) -> None:
        """Keep changes for a consumer from now on; raises JournalUnusable. Blocks on the disk."""
        self.journal.register(consumer, self.clocks.wall())
        self._command(self._cover)

    def forget(self, consumer: Consumer) -> None:
        """Keep nothing for a consumer any more; raises JournalUnusable. Blocks on the disk."""
        self.journal.forget(consumer)
        self._command(self._cover)

    def is_ready(self, consumer: Consumer) -> bool:
        """Whether all below a consumer's top was watched once: a whole pass may begin."""
        indexed = Tops(_unpacked(self.store.about(_INDEXED)))
        return indexed.holds(consumer.top)

    def catch_up(self, done: Callable[[], None]) -> None:
        """Journal what changed before this call, settled or not, then call `done` in the thread.

        What no event tells of is scanned. Where that cannot be (the root is away), it is called all
        the same: `state` tells.
        """

        def begin() -> None:
            watched = self._watched
            if watched is not None:
                self._take_events()
                watched.events.give_up_halves(all_of_them=True)
                self._commit(watched.settling.flush())
                self._poll(now_at_once=True)
            self._waiters.append(done)

        self._command(begin)

    def _command(self, what: Callable[[], None]) -> None:
        self._commands.put(what)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError, BlockingIOError):
            os.eventfd_write(self.wake_fd, 1)

    # The thread

    def _run(self) -> None:
        self._why = "the worker was not running"
        while not self._is_stopping:
            try:
                self._turn()
            except QueueOverflowed as error:
                self.overflows += 1
                self._lose(str(error), after_s=0.0)
            except _OtherTops as error:
                self._lose(str(error), after_s=0.0, is_loss=False)
            except EventsLost as error:
                self._lose(str(error), after_s=0.0)
            except RootGone as error:
                self._lose(f"the root is away: {error}", after_s=0.0)
            except (JournalUnusable, OSError) as error:
                self._lose(str(error), after_s=RETRY_S)
            except Exception:
                # A watch that dies silently is the worst of all: begin anew, and say so.
                log.exception("watching_failed", root=self.name)
                self._lose("an error in the worker: see its log", after_s=RETRY_S)
        self._close()

    def _close(self) -> None:
        watched, self._watched = self._watched, None
        try:
            if watched is not None and not self._is_beginning:
                with contextlib.suppress(EventsLost, RootGone):
                    watched.events.take(watched.tree.inotify.events())
                    watched.events.give_up_halves(all_of_them=True)
                    self._watched = watched
                    self._commit(watched.settling.flush())
                    self._note_seen()
        except (JournalUnusable, OSError) as error:
            log.warning("watching_not_ended", root=self.name, why=str(error))
        finally:
            self._watched = None
            if watched is not None:
                watched.tree.close()
            for done in self._waiters:
                done()
            self._waiters.clear()

    def _lose(self, why: str, *, after_s: float, is_loss: bool = True) -> None:
        """Let go of everything, and begin anew."""
        if is_loss:
            log.warning("watch_lost", root=self.name, why=why)
        if self._doubt is None:
            self._doubt = self._seen_until()
        self._why, self._has_lost = why, is_loss
        watched, self._watched = self._watched, None
        if watched is not None:
            watched.tree.close()
        self._is_beginning = False
        self._due["begin"] = self.clocks.monotonic() + after_s
        self._show()
        self._release()

    def _turn(self) -> None:
        """Wait for something, and deal with it."""
        watched = self._watched
        if watched is None:
            self._wait_unwatched()
            self._run_commands()
            if self.clocks.monotonic() >= self._due["begin"] and not self._is_stopping:
                self._begin()
            return
        watched.poller.poll(self._wait_ms(watched))
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wake_fd)
        self._take_events()
        self._run_commands()
        if self._watched is not watched:
            return
        watched.events.give_up_halves()
        self._commit(watched.settling.due(self.clocks.monotonic() + TOGETHER_S))
        self._survey(watched)
        self._by_the_clock(watched)
        if watched.survey.is_over():
            self._release()

    def _wait_unwatched(self) -> None:
        wait_s = max(0.0, self._due["begin"] - self.clocks.monotonic())
        poller = select.poll()
        poller.register(self.wake_fd, select.POLLIN)
        poller.poll(int(wait_s * 1000) + 1 if wait_s else 0)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wake_fd)

    def _wait_ms(self, watched: _Watched) -> int:
        if not watched.survey.is_over():
            return 0
        due = min(self._due[name] for name in ("root", "refresh", "seen", "poll"))
        for other in (watched.settling.next_due(), watched.events.next_due()):
            if other is not None:
                due = min(due, other)
        left_s = due - self.clocks.monotonic()
        return int(left_s * 1000) + 1 if left_s > 0 else 0

    def _run_commands(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._commands.get_nowait()()

    def _take_events(self) -> None:
        watched = self._watched
        if watched is None:
            return
        watched.settling.settle_s = self.settle_s
        if events := watched.tree.inotify.events():
            with self.store.transaction():
                watched.events.take(events)

    def _release(self) -> None:
        waiters, self._waiters = self._waiters, []
        for done in waiters:
            done()

    # Beginning

    def _begin(self) -> None:
        """Open the root and look at all of it."""
        self._due["begin"] = self.clocks.monotonic() + ROOT_CHECK_S
        if self._doubt is None:
            self._doubt = self._seen_until()
        try:
            with Tree.open(bytes(self.path), read_only=True) as tree:
                self._identity.check(tree.root_fd)
                root_fd = os.dup(tree.root_fd)
        except (TreeError, OSError) as error:
            why = f"the root is away: {getattr(error, 'strerror', None) or error}"
            if why != self._why:
                log.warning("watch_root_away", root=self.name, why=why)
            self._why = why
            self._show()
            self._release()
            return
        tops = Tops(self._tops())
        try:
            self._watched = watched = _Watched(root_fd, tops, self)
        except OSError as error:
            os.close(root_fd)
            limit = "fs.inotify.max_user_instances"
            raise OSError(error.errno, f"{error.strerror}: raise sysctl {limit}") from error
        now = self.clocks.monotonic()
        self._due |= {
            "root": now + ROOT_CHECK_S,
            "refresh": now + REFRESH_S,
            "seen": now + SEEN_EVERY_S,
            "poll": now + POLL_S,
        }
        self._is_beginning = True
        self._poll_began = (now, self.clocks.wall())
        watched.survey.push(watched.tree.root, self._doubt)
        log.info("watch_begins", root=self.name, why=self._why, tops=len(tops.tops))
        self._show()

    def _tops(self) -> list[bytes]:
        return [consumer.top for consumer in self.journal.consumers] or [b""]

    def _cover(self) -> None:
        """Begin anew when consumers want more, or less, than is watched."""
        watched = self._watched
        if watched is not None and Tops(self._tops()).tops != watched.tops.tops:
            raise _OtherTops("another part of the root is used now")

    def _survey(self, watched: _Watched) -> None:
        """Look at directories for a while."""
        survey = watched.survey
        if survey.is_over():
            if survey.told:
                self._tell(survey.told)
                survey.told = set()
            return
        until = self.clocks.monotonic() + SLICE_S
        with self.store.transaction():
            while not survey.is_over() and self.clocks.monotonic() < until:
                survey.step()
        told, survey.told = survey.told, set()
        now = self.clocks.monotonic()
        for path in survey.unsure:
            watched.events.changed.setdefault(path, now)
        survey.unsure.clear()
        if told:
            self._tell(told)
        if survey.is_over():
            self._looked_at_all(watched)

    def _looked_at_all(self, watched: _Watched) -> None:
        """Go on after everything that was to be looked at was."""
        began, self._poll_began = self._poll_began, None
        now = self.clocks.monotonic()
        if began is not None:
            took_s = now - began[0]
            self._due["poll"] = now + max(POLL_S, 10 * took_s)
            is_blind = watched.network is not None or bool(watched.survey.troubles)
            self._doubt = began[1] if is_blind else None
        if self._is_beginning:
            self._is_beginning = self._has_lost = False
            self._identity.note(watched.tree.root_fd)
            self.store.note(_INDEXED, _packed(watched.tops.tops))
            log.info(
                "watches",
                root=self.name,
                directories=len(watched.tree),
                found=watched.survey.found,
                why=self._why,
                troubles=len(watched.survey.troubles),
            )
            self._tell(self.journal.consumers)
        self._note_seen()
        self._why = ""
        self._show()

    # What settled

    def _commit(self, settled: list[Settled]) -> None:
        watched = self._watched
        if not settled or watched is None:
            return
        renames = []
        changes = []
        entries = []
        for path, at, is_deep in settled:
            changes.append(Change(path, at, is_deep))
            rename = watched.events.renames.pop(path, None)
            if rename is not None:
                renames.append(rename)
            directory = watched.tree.find(parent_of(path))
            if path and directory is not None and not is_deep:
                name = path.rpartition(b"/")[2]
                child = (directory.children or {}).get(name)
                entries.append((directory.number, name, child.number if child is not None else 0))
        with self.store.transaction():
            self.index.expect(entries)
            told = self.journal.add(changes, renames)
        self._tell(told)

    # By the clock

    def _by_the_clock(self, watched: _Watched) -> None:
        now = self.clocks.monotonic()
        if now >= self._due["refresh"]:
            self._due["refresh"] = now + REFRESH_S
            self._refresh(watched, now)
        if now >= self._due["root"]:
            self._due["root"] = now + ROOT_CHECK_S
            self._check_root(watched)
        if now >= self._due["seen"]:
            self._note_seen()
        if now >= self._due["poll"]:
            self._poll()

    def _check_root(self, watched: _Watched) -> None:
        """See whether the path still leads to the root, and what is mounted below it."""
        try:
            there, held = self.path.stat(), os.fstat(watched.tree.root_fd)
        except OSError as error:
            raise RootGone(error.strerror or str(error)) from error
        if (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino):
            raise RootGone("another directory lies at its path")
        mounts = _mounts()
        if mounts != watched.mounts:
            before, watched.mounts = watched.mounts, mounts
            inside = bytes(self.path.resolve()) + b"/"
            if any(point.startswith(inside) for point in before ^ mounts):
                raise EventsLost("something was mounted below the root, or unmounted")

    def _poll(self, *, now_at_once: bool = False) -> None:
        """Look at what no event tells of."""
        watched = self._watched
        now = self.clocks.monotonic()
        self._due["poll"] = now + POLL_S
        if watched is None or not (watched.survey.is_over() or now_at_once):
            return
        if self._is_beginning:
            return
        survey, began = watched.survey, (now, self.clocks.wall())
        since = self._doubt or began[1]
        if watched.network is not None:
            survey.push(watched.tree.root, since)
            self._poll_began = began
            return
        for path in list(survey.troubles):
            node = watched.tree.find(path)
            if node is None:
                del survey.troubles[path]
            else:
                survey.push(node, since)
                self._poll_began = began
        if not survey.troubles and self._poll_began is None and self._doubt is not None:
            self._doubt = None
            self._show()

    def _refresh(self, watched: _Watched, now: float) -> None:
        """Let the index take up what has been journaled, once it has come to rest; a few at a time."""
        changed = watched.events.changed
        old: list[bytes] = []
        for path, since in changed.items():  # the oldest first
            if since + REFRESH_AGE_S > now or len(old) == REFRESH_MOST:
                break
            old.append(path)
        if not old:
            return
        if len(old) == REFRESH_MOST:
            self._due["refresh"] = now + REFRESH_BUSY_S
        looks = _looks(watched, old, int(self.clocks.wall() * 1e9))
        # RACE: what an entry looks like now may be the work of somebody whom no event has told of
        # yet, and the index must not know it before the journal. Its times are older than
        # SETTLED_NS, so that would take a single write that lasted as long.
        self._take_events()
        rows: list[tuple[int, int, bytes, int]] = []
        with self.store.transaction():
            for path, seen in looks:
                if watched.events.waits_for(path):
                    continue
                del changed[path]
                if seen == UNSURE or (seen is None and path not in watched.gone):
                    # RACE: a name is gone a moment before that is told. A second look, later on,
                    # finds it told.
                    changed[path] = now
                    watched.gone.add(path)
                    continue
                watched.gone.discard(path)
                self._remember(watched, path, seen, rows)
            self.index.settle(rows)

    def _remember(
        self,
        watched: _Watched,
        path: bytes,
        seen: int | None,
        rows: list[tuple[int, int, bytes, int]],
    ) -> None:
        directory = watched.tree.find(parent_of(path))
        if directory is None:
            return
        name = path.rpartition(b"/")[2]
        if seen is None:
            self.index.remove(directory.number, name)
            return
        if not path:
            rows.append((seen, 0, b"", TOP))
            return
        child = (directory.children or {}).get(name)
        rows.append((seen, directory.number, name, child.number if child is not None else 0))

    def _seen_until(self) -> float:
        found = self.store.about(_SEEN_UNTIL)
        return float(found) if found is not None else self.clocks.wall()

    def _note_seen(self) -> None:
        """Note until when everything was seen: what is found after a crash happened later."""
        self._due["seen"] = self.clocks.monotonic() + SEEN_EVERY_S
        if self._doubt is None:
            self.store.note(_SEEN_UNTIL, repr(self.clocks.wall()))

    # What is shown

    def _begun_state(self, why: str) -> WatchState:
        return WatchState(WatchSource.EVENTS, WatchPhase.SCANNING, why, 0, self._seen_until())

    def _show(self) -> None:
        watched = self._watched
        if watched is None:
            self._state = WatchState(
                WatchSource.NONE, WatchPhase.DEGRADED, self._why, 0, self._doubt
            )
            return
        directories = len(watched.tree)
        source = WatchSource.EVENTS if watched.network is None else WatchSource.POLLING
        reason, phase = self._why, WatchPhase.DEGRADED
        if self._is_beginning and not self._has_lost:
            phase = WatchPhase.SCANNING
        if not self._is_beginning:
            reason = _troubles(watched.survey, directories)
            phase = WatchPhase.DEGRADED if reason else WatchPhase.WATCHING
            if watched.network is not None and not reason:
                reason = f"{watched.network}: what other hosts change is found by scans"
        self._state = WatchState(source, phase, reason, directories, self._doubt)


def _troubles(survey: Survey, directories: int) -> str:
    """Say what is not watched, why, and what to do about it."""
    troubles = survey.troubles
    blind = sum(what is Trouble.NO_WATCH for what, _ in troubles.values())
    if blind:
        needed = 1 << (2 * (directories + blind)).bit_length()
        return (
            f"{blind} directories are scanned, not watched: the kernel's limit of watches is reached. "
            f"Set sysctl fs.inotify.max_user_watches={needed}"
        )
    if not troubles:
        return ""
    path, (_, why) = min(troubles.items())
    others = f" and {len(troubles) - 1} others" if len(troubles) > 1 else ""
    return f"cannot read the directory {os.fsdecode(path) or '.'}{others}: {why}"


def _looks(
    watched: _Watched, paths: Iterable[bytes], now_ns: int
) -> list[tuple[bytes, int | None]]:
    """Return how the entries at some paths look; None for what is gone. Opens a directory once."""
    found: list[tuple[bytes, int | None]] = []
    held: tuple[bytes, int] | None = None
    try:
        for path in sorted(paths):
            parent, _, name = path.rpartition(b"/")
            seen = None
            with contextlib.suppress(OSError):
                if held is None or held[0] != parent:
                    if held is not None:
                        os.close(held[1])
                        held = None
                    held = (parent, watched.tree.open_path(parent))
                seen = look_of(os.lstat(name or b".", dir_fd=held[1]), now_ns)
            found.append((path, seen))
    finally:
        if held is not None:
            os.close(held[1])
    return found


def _mounts() -> frozenset[bytes]:
    """Return where something is mounted, with its device."""
    try:
        with open("/proc/self/mountinfo", "rb") as lines:  # noqa: PTH123 - the kernel's own file
            return frozenset(b"\0".join(_unescaped(line)) for line in lines)
    except OSError:
        return frozenset()


def _unescaped(line: bytes) -> tuple[bytes, bytes]:
    fields = line.split(b" ", 5)
    point = fields[4]
    for code, byte in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        point = point.replace(code, byte)
    return point, fields[2]


def _packed(tops: Iterable[bytes]) -> str:
    return "/".join(sorted(top.hex() + "." for top in tops))


def _unpacked(text: str | None) -> list[bytes]:
    return [bytes.fromhex(one.rstrip(".")) for one in text.split("/")] if text else []
