"""I14: any message between daemons is converted, or refused by the one error that its readers expect.

The functions are found by their names, and the messages drawn from their descriptors, so that what is
added is fuzzed as well.
"""

import contextlib
import inspect
import typing
from collections.abc import Callable
from types import ModuleType

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from syncengine.errors import MalformedFrame
from wire import peer_convert, worker_convert
from wire.errors import ProtocolError
from wire.token import BadToken

REFUSALS = (ProtocolError, BadToken, MalformedFrame)
MODULES: list[ModuleType] = [peer_convert, worker_convert]
Convert = Callable[[typing.Any], object]


def readers(suffix: str) -> dict[str, Convert]:
    """Return the public functions that read what another daemon sent."""
    found: dict[str, Convert] = {}
    for module in MODULES:
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if name.endswith(suffix) and not name.startswith("_"):
                found[f"{module.__name__}.{name}"] = function
    return found


FROM_WIRE = readers("_from_wire")
FROM_BYTES = readers("_from_bytes")


def message_of(function: Convert) -> type[Message]:
    (first,) = list(inspect.signature(function).parameters.values())[:1]
    return typing.cast("type[Message]", typing.get_type_hints(function)[first.name])


SCALARS: dict[int, st.SearchStrategy[object]] = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: st.one_of(
        st.integers(-2, 3), st.integers(-(1 << 63), (1 << 63) - 1)
    ),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.one_of(st.integers(0, 3), st.integers(0, (1 << 64) - 1)),
    FieldDescriptor.CPPTYPE_DOUBLE: st.one_of(st.floats(), st.sampled_from([0.0, 0.5, 1.0, 5.0])),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}
WORDS = st.sampled_from(
    ["", "mirror", "sync", "mtime", "strict", "keep", "auto", "w1:root", "1-2", "job"]
)


def scalar(field: FieldDescriptor) -> st.SearchStrategy[object]:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return st.one_of(st.binary(max_size=12), st.sampled_from([b"../x", b"a/b", b"."]))
        return st.one_of(WORDS, st.text(max_size=8).filter(lambda t: max(t, default="") < "\ud800"))
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        assert field.enum_type is not None
        return st.one_of(st.sampled_from([v.number for v in field.enum_type.values]), st.just(99))
    return SCALARS[field.cpp_type]


def any_of(descriptor: Descriptor, depth: int = 3) -> st.SearchStrategy[Message]:
    """Draw a message: each field as it was made, or set to something."""

    @st.composite
    def drawn(draw: st.DrawFn) -> Message:
        message = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if draw(st.integers(0, 3)) == 0:
                continue
            _set(draw, message, field, depth)
        return message

    return drawn()


def _set(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    is_many = field.is_repeated
    if field.message_type is None:
        if is_many:
            getattr(message, field.name).extend(draw(st.lists(scalar(field), max_size=3)))
        else:
            setattr(message, field.name, draw(scalar(field)))
    elif depth and field.message_type.GetOptions().map_entry:
        return
    elif depth:
        inner = any_of(field.message_type, depth - 1)
        if is_many:
            getattr(message, field.name).extend(draw(st.lists(inner, max_size=2)))
        else:
            getattr(message, field.name).CopyFrom(draw(inner))


@pytest.mark.parametrize("name", list(FROM_WIRE))
def test_i14_any_message_is_converted_or_refused(name: str) -> None:
    function = FROM_WIRE[name]

    @settings(max_examples=60, deadline=None)
    @given(message=any_of(typing.cast("Descriptor", message_of(function).DESCRIPTOR)))
    def check(message: Message) -> None:
        with contextlib.suppress(*REFUSALS):
            function(message)

    check()


@pytest.mark.parametrize("name", list(FROM_BYTES))
@settings(max_examples=60, deadline=None)
@given(raw=st.binary(max_size=60))
def test_i14_any_bytes_are_read_or_refused(name: str, raw: bytes) -> None:
    with contextlib.suppress(*REFUSALS):
        FROM_BYTES[name](raw)


def test_readers_are_found() -> None:
    assert "wire.worker_convert.order_from_wire" in FROM_WIRE
    assert "wire.worker_convert.report_from_wire" in FROM_WIRE
    assert "wire.peer_convert.header_from_bytes" in FROM_BYTES
