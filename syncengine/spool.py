"""Where the changes of a plan wait, or other values: in memory while few, else in an unlinked file."""

import os
import tempfile
from collections.abc import Iterator
from typing import IO, Generic, TypeVar

import msgspec
from blake3 import blake3

from syncengine.changes import Change

_BLOCK_CHANGES = 1_024
_MEMORY_BYTES = 2 * 1024 * 1024

T = TypeVar("T")


class ValueSpool(Generic[T]):
    """An append-only list of values that can be read many times; not safe between threads.

    `holding` is the list type that MessagePack is read as. The values are hashed on the way.
    """

    def __init__(self, folder: str | None, holding: type[list[T]]) -> None:
        self._folder = folder
        self._holding = holding
        self._encode = msgspec.msgpack.Encoder().encode
        self._open_block: list[T] = []
        self._blocks: list[bytes] = []
        self._in_memory = 0
        self._spans: list[tuple[int, int]] = []
        self._file: IO[bytes] | None = None
        self._end = 0
        self._hasher = blake3()
        self._length = 0

    def append(self, value: T) -> None:
        """Add one value at the end; raises OSError when the spool's disk is full."""
        block = self._open_block
        block.append(value)
        if len(block) >= _BLOCK_CHANGES:
            self._close_block()

    def __len__(self) -> int:
        return self._length + len(self._open_block)

    def _close_block(self) -> None:
        data = self._encode(self._open_block)
        self._length += len(self._open_block)
        self._open_block.clear()
        self._hasher.update(data)
        if self._file is None:
            self._blocks.append(data)
            self._in_memory += len(data)
            if self._in_memory > _MEMORY_BYTES:
                self._move_to_file()
        else:
            self._write(data)

    def _move_to_file(self) -> None:
        self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - lives as long as this
        for data in self._blocks:
            self._write(data)
        self._blocks.clear()

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)
        self._spans.append((self._end, len(data)))
        self._end += len(data)

    def seal(self) -> bytes:
        """Write out what is left and return the BLAKE3 digest of all values in their order."""
        if self._open_block:
            self._close_block()
        if self._file is not None:
            self._file.flush()
        return self._hasher.digest()

    def __iter__(self) -> Iterator[T]:
        decode = msgspec.msgpack.Decoder(self._holding).decode
        for data in self._blocks:
            yield from decode(data)
        if self._file is not None:
            fd = self._file.fileno()
            for offset, length in self._spans:
                yield from decode(os.pread(fd, length, offset))

    def close(self) -> None:
        """Give the memory and the file back."""
        self._blocks.clear()
        self._spans.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


class Spool(ValueSpool[Change]):
    """A spool of changes."""

    def __init__(self, folder: str | None = None) -> None:
        super().__init__(folder, list[Change])
