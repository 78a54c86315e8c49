"""Members of jobs as text, `WORKER:ROOT[/PATH]`: reading, and whether two share files. Pure."""

import re
from collections.abc import Sequence

from syncengine.model import RESERVED_NAME, TEMPORARY_PREFIX
from wire.identity import is_label
from wire.orders import Member

_ROOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_COMPONENT_BYTES = 255
_PATH_BYTES = 4096


def parse_member(text: str) -> Member:
    """Read `WORKER:ROOT[/PATH]`. Raises `ValueError` that says what would be right.

    PATH cannot leave its root nor reach what is reserved: no `.`, `..`, empty or `.baton` in it.
    """
    worker, colon, rest = text.partition(":")
    root, slash, path = rest.partition("/")
    if not (colon and worker and root):
        raise ValueError(f"{text!r} is no member: use WORKER:ROOT or WORKER:ROOT/PATH")
    if not is_label(worker):
        raise ValueError(f"{text!r}: {worker!r} is no name of a worker: use a DNS label")
    if not is_root_name(root):
        raise ValueError(
            f"{text!r}: {root!r} is no name of a root: use letters, digits, '.', '_' and '-'"
        )
    try:
        raw = path.encode("utf-8")
    except UnicodeEncodeError as error:
        # Below the path of a member names are any bytes; the member itself is named in messages.
        raise ValueError(
            f"{text!r}: the path is no UTF-8: name a directory above it, or rename it"
        ) from error
    if slash:
        _check_path(text, raw)
    return Member(worker, root, raw)


def is_root_name(text: str) -> bool:
    """Say whether a root can have this name: 1 to 63 letters, digits, `.`, `_`, `-`."""
    return _ROOT.fullmatch(text) is not None


def _check_path(text: str, path: bytes) -> None:
    if len(path) > _PATH_BYTES:
        raise ValueError(f"{text!r}: the path is longer than {_PATH_BYTES} bytes")
    for component in path.split(b"/"):
        if component in {b"", b".", b".."} or b"\0" in component:
            raise ValueError(
                f"{text!r}: the path must be relative to the root, "
                "without empty, '.' or '..' components and without '/' at its end"
            )
        if component == RESERVED_NAME or component.startswith(TEMPORARY_PREFIX):
            raise ValueError(f"{text!r}: names that begin with .baton are Baton's own")
        if len(component) > _COMPONENT_BYTES:
            raise ValueError(f"{text!r}: a name is longer than {_COMPONENT_BYTES} bytes")


def members_overlap(one: Member, other: Member) -> bool:
    """Say whether two members share files: same worker and root, one path at or below the other."""
    if (one.worker, one.root) != (other.worker, other.root):
        return False
    short, long = sorted((_components(one), _components(other)), key=len)
    return long[: len(short)] == short


def _components(member: Member) -> Sequence[bytes]:
    return member.path.split(b"/") if member.path else []
