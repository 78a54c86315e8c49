"""etcd's message classes, out of the descriptors that the `etcd3` package carries.

The generated modules of etcd3 0.12.0 do not import with today's protobuf, but the serialized
descriptors in them are sound. They are read from the source, given the one message that they lack
(WatchProgressRequest, etcd 3.4), and built in a pool of their own, so that no other package that
registers the same names can collide. The only module that knows how etcd3 looks inside.
"""

import ast
import importlib.util
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FILES = ("kv", "auth", "rpc")


def _serialized(path: Path) -> bytes:
    """Return the serialized FileDescriptorProto that a generated module passes to FileDescriptor."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "FileDescriptor":
            value = next(word.value for word in node.keywords if word.arg == "serialized_pb")
            literal: Any = value.args[0] if isinstance(value, ast.Call) else value
            text: str = literal.value
            return text.encode("latin1")
    raise ImportError(f"{path} has no serialized descriptor: is this etcd3 0.12.0?")


def _with_progress_request(file: descriptor_pb2.FileDescriptorProto) -> None:
    """Add what etcd 3.4 added to WatchRequest."""
    file.message_type.add(name="WatchProgressRequest")
    request = next(message for message in file.message_type if message.name == "WatchRequest")
    request.field.add(
        name="progress_request",
        number=3,
        label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
        type_name=".etcdserverpb.WatchProgressRequest",
        oneof_index=0,
    )


def _build() -> dict[str, types.ModuleType]:
    spec = importlib.util.find_spec("etcd3")  # finds it without importing it
    if spec is None or spec.origin is None:
        raise ImportError("the etcd3 package (0.12.0) is not installed")
    folder = Path(spec.origin).parent / "etcdrpc"
    pool = descriptor_pool.DescriptorPool()
    modules = {}
    for name in _FILES:
        file = descriptor_pb2.FileDescriptorProto.FromString(_serialized(folder / f"{name}_pb2.py"))
        if name == "rpc":
            _with_progress_request(file)
        pool.AddSerializedFile(file.SerializeToString())
        descriptor = pool.FindFileByName(file.name)
        module = types.ModuleType(f"etcd3.etcdrpc.{name}_pb2")
        module.__dict__["DESCRIPTOR"] = descriptor
        for message_name, message in descriptor.message_types_by_name.items():
            module.__dict__[message_name] = message_factory.GetMessageClass(message)
        for enum in descriptor.enum_types_by_name.values():
            for value in enum.values:
                module.__dict__[value.name] = value.number
        modules[module.__name__] = module
    return modules


_MODULES = _build()
rpc: Any = _MODULES["etcd3.etcdrpc.rpc_pb2"]
"""etcd's requests and responses by name, as the generated module would have them."""
kv: Any = _MODULES["etcd3.etcdrpc.kv_pb2"]
"""KeyValue and Event."""


def make_etcd3_importable() -> None:
    """Let `import etcd3` find these classes, for those who want its own client beside ours."""
    for name, module in _MODULES.items():
        sys.modules.setdefault(name, module)


@dataclass(frozen=True, slots=True)
class Method:
    """One method of etcd's API: its path on the wire, what it takes and what it gives."""

    path: str
    request: Any
    response: Any


def _method(service: str, name: str, message: str) -> Method:
    return Method(
        f"/etcdserverpb.{service}/{name}",
        getattr(rpc, f"{message}Request"),
        getattr(rpc, f"{message}Response"),
    )


RANGE = _method("KV", "Range", "Range")
PUT = _method("KV", "Put", "Put")
DELETE_RANGE = _method("KV", "DeleteRange", "DeleteRange")
TXN = _method("KV", "Txn", "Txn")
COMPACT = _method("KV", "Compact", "Compaction")
WATCH = _method("Watch", "Watch", "Watch")
LEASE_GRANT = _method("Lease", "LeaseGrant", "LeaseGrant")
LEASE_REVOKE = _method("Lease", "LeaseRevoke", "LeaseRevoke")
LEASE_KEEP_ALIVE = _method("Lease", "LeaseKeepAlive", "LeaseKeepAlive")
LEASE_TIME_TO_LIVE = _method("Lease", "LeaseTimeToLive", "LeaseTimeToLive")
MEMBER_LIST = _method("Cluster", "MemberList", "MemberList")
STATUS = _method("Maintenance", "Status", "Status")
ALARM = _method("Maintenance", "Alarm", "Alarm")
AUTHENTICATE = _method("Auth", "Authenticate", "Authenticate")
