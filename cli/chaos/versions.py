"""Content that proves itself: every version that a writer makes names itself and carries its digest."""

import hashlib
import random

_DIGITS = 64
_LINE = b"0123456789abcdef" * 4


def make_version(name: str, dice: random.Random) -> bytes:
    """Return the content of a version, of up to half a megabyte, mostly small."""
    size = dice.choice((0, 1, 1, 5, 50, 50, 500, 5_000)) * dice.randrange(1, 100)
    body = name.encode() + b"\n" + _LINE * (size // len(_LINE))
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def version_of(content: bytes) -> str | None:
    """Return which version this is, whole; None for what is no complete version."""
    digest, newline, body = content.partition(b"\n")
    if len(digest) != _DIGITS or not newline:
        return None
    if hashlib.sha256(body).hexdigest().encode() != digest:
        return None
    return body.partition(b"\n")[0].decode()
