"""The connection of a push: what is sent arrives as it was, in order, or not at all."""

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from wire import payload as payload_module
from wire.channel import MAX_MESSAGE_BYTES
from wire.errors import PayloadBroken, ProtocolError
from wire.payload import Listener, Offer, Payload, reach

SECRET = bytes(range(32))
OTHER_SECRET = bytes(32)
JOIN_S = 20.0
HOST = "127.0.0.1"

FRAMES = [b"first", b"second", b"", b"third" * 100]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def sealed(frames: list[bytes], secret: bytes = SECRET) -> list[bytes]:
    """What each frame is on the wire."""
    one, other = socket.socketpair()
    with one, other:
        sender = Payload(one, secret, pushing=True)
        records = []
        for frame in frames:
            sender.send(frame)
            records.append(other.recv(1 << 20))
        return records


def received(raw: bytes) -> list[bytes]:
    """What a receiver makes of bytes on the wire, until it finds something wrong with them."""
    one, other = socket.socketpair()
    with one, other:
        one.sendall(raw)
        one.shutdown(socket.SHUT_WR)
        frames: list[bytes] = []
        with pytest.raises(PayloadBroken):
            frames.extend(Payload(other, SECRET, pushing=False).frames())
        return frames


def take(payload: Payload, number: int) -> list[bytes]:
    """The next frames, in this thread."""
    with closing(payload.frames()) as frames:  # type: ignore[type-var]
        return [next(frames) for _ in range(number)]


def test_frames_arrive_as_they_were_sent(ends: tuple[socket.socket, socket.socket]) -> None:
    frames = [os.urandom(size) for size in (1, 2, 16, 4095, 1 << 20, MAX_MESSAGE_BYTES, 3, 1)]
    sender = Payload(ends[0], SECRET, pushing=True)

    def send() -> None:
        for frame in frames:
            sender.send(frame)

    sending = threading.Thread(target=send)
    sending.start()
    assert take(Payload(ends[1], SECRET, pushing=False), len(frames)) == frames
    sending.join(JOIN_S)


def test_nothing_of_the_content_can_be_seen() -> None:
    secret = b"nobody is to read this" * 40
    (record,) = sealed([secret])
    assert not any(secret[at : at + 8] in record for at in range(22))
    twice = sealed([secret, secret])
    assert twice[0] == record
    assert twice[1] != record


def test_a_key_is_used_for_so_many_records_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_module, "_RECORDS_PER_KEY", 2)
    records = sealed([b"the same"] * 7)
    assert len(set(records)) == 7
    assert received(b"".join(records)) == [b"the same"] * 7


def test_each_direction_has_keys_of_its_own() -> None:
    """What one side said comes back: it is not taken for what the other says."""
    one, other = socket.socketpair()
    with one, other:
        sender = Payload(one, SECRET, pushing=True)
        sender.send(b"hello")
        other.sendall(other.recv(1000))
        with pytest.raises(PayloadBroken, match="not what was sent"):
            take(sender, 1)


def _flipped(at: int) -> Callable[[list[bytes]], list[bytes]]:
    def flip(records: list[bytes]) -> list[bytes]:
        changed = bytearray(records[1])
        changed[at] ^= 1
        return [records[0], bytes(changed), *records[2:]]

    return flip


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_flipped(3), id="the length"),
        pytest.param(_flipped(4), id="the first byte"),
        pytest.param(_flipped(-1), id="the last byte"),
        pytest.param(lambda all_: [all_[0], all_[2], all_[1], all_[3]], id="in another order"),
        pytest.param(lambda all_: [all_[0], all_[0], *all_[1:]], id="repeated"),
        pytest.param(lambda all_: [all_[0], *all_[2:]], id="left out"),
        pytest.param(lambda all_: [all_[0], all_[1][:-1]], id="cut off"),
        pytest.param(lambda all_: [all_[0], all_[1][:2]], id="cut off in the length"),
        pytest.param(lambda all_: [all_[0], b"\xff" * 100], id="noise"),
        pytest.param(lambda all_: [all_[0], b"\0\0\0\x10" + bytes(16)], id="nothing, unsealed"),
        pytest.param(
            lambda all_: [all_[0], *sealed(FRAMES, OTHER_SECRET)[1:]], id="another secret"
        ),
    ],
)
def test_what_was_changed_on_the_way_is_not_taken(
    change: Callable[[list[bytes]], list[bytes]],
) -> None:
    frames = [frame + b"!" for frame in FRAMES]
    assert received(b"".join(sealed(frames))) == frames
    assert received(b"".join(change(sealed(frames)))) == frames[:1]


def test_a_record_larger_than_any_frame_is_refused_before_there_is_room_for_it() -> None:
    raw = (MAX_MESSAGE_BYTES + 17).to_bytes(4)
    one, other = socket.socketpair()
    with one, other:
        one.sendall(raw)
        with pytest.raises(PayloadBroken, match="a record of"):
            take(Payload(other, SECRET, pushing=False), 1)


@pytest.mark.parametrize("side", ["sending", "receiving"])
def test_ending_wakes_whoever_waits(ends: tuple[socket.socket, socket.socket], side: str) -> None:
    payload = Payload(ends[0], SECRET, pushing=True)
    ended: list[PayloadBroken] = []

    def wait() -> None:
        try:
            while side == "sending":
                payload.send(bytes(1 << 20))
            take(payload, 1)
        except PayloadBroken as error:
            ended.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    waiting.join(0.05)
    payload.abort()
    waiting.join(JOIN_S)
    assert len(ended) == 1
    payload.close()
    payload.abort()


async def test_whoever_knows_the_secret_gets_through() -> None:
    with closing(Listener(HOST)) as listener:
        accepting = asyncio.create_task(listener.accept())
        offer = Offer.from_bytes(listener.offer.to_bytes())
        ours = await reach(HOST, offer)
        assert ours is not None
        theirs = await accepting
        with closing(ours):
            ours.send(b"a frame")
            assert await asyncio.to_thread(take, theirs, 1) == [b"a frame"]


async def test_others_are_hung_up_on_and_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_module, "HANDSHAKE_S", 5.0)
    with closing(Listener(HOST)) as listener:
        accepting = asyncio.create_task(listener.accept())
        port = listener.offer.port
        assert await reach(HOST, Offer(port, OTHER_SECRET)) is None
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n" * 10)
        async with asyncio.timeout(JOIN_S):
            while await _read(reader):
                pass
        writer.close()
        assert not accepting.done()
        ours = await reach(HOST, listener.offer)
        assert ours is not None
        ours.close()
        await accepting


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(1000)
    except ConnectionError:
        return b""


async def test_a_port_that_nobody_listens_on_is_not_reached() -> None:
    listener = Listener(HOST)
    listener.close()
    assert await reach(HOST, listener.offer) is None


async def test_a_port_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_module, "HANDSHAKE_S", 0.1)
    with closing(Listener(HOST)) as listener:  # nobody accepts
        assert await reach(HOST, listener.offer) is None


async def test_a_caller_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_module, "HANDSHAKE_S", 0.1)
    with closing(Listener(HOST)) as listener:
        accepting = asyncio.create_task(listener.accept())
        reader, writer = await asyncio.open_connection(HOST, listener.offer.port)
        async with asyncio.timeout(JOIN_S):
            while await _read(reader):
                pass
        writer.close()
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)


@pytest.mark.parametrize("raw", [b"", b"short", bytes(35)])
def test_an_offer_that_makes_no_sense_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        Offer.from_bytes(raw)


def test_a_host_that_is_not_ours_cannot_be_listened_on() -> None:
    with pytest.raises(OSError, match="assign"):
        Listener("192.0.2.1")
