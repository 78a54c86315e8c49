"""What is asked of a member of etcd by an operator, over its HTTP gateway."""

import asyncio
import json
import urllib.error
import urllib.request
from base64 import b64encode
from typing import Any


async def ask(endpoint: str, path: str, *, within_s: float = 10.0, **body: Any) -> Any:
    """Call a method, such as maintenance/status; raises OSError or ValueError when it fails."""
    return await asyncio.to_thread(_ask, endpoint, path, body, within_s)


def _ask(endpoint: str, path: str, body: dict[str, Any], within_s: float) -> Any:
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{endpoint}/v3/{path}", data=data)  # noqa: S310
    with urllib.request.urlopen(request, timeout=within_s) as answer:  # noqa: S310 - our own member
        return json.loads(answer.read())


async def leads(endpoint: str) -> bool:
    """Say whether a member leads."""
    status = await ask(endpoint, "maintenance/status", within_s=1)
    return bool(status["leader"] == status["header"]["member_id"])


async def alarms(endpoint: str) -> list[dict[str, Any]]:
    """Return the alarms that are raised."""
    answer = await ask(endpoint, "maintenance/alarm", action="GET")
    found: list[dict[str, Any]] = answer.get("alarms", [])
    return found


async def put(endpoint: str, key: str, value: bytes) -> bool:
    """Write a key; return whether there was room."""
    try:
        await ask(endpoint, "kv/put", key=_text(key.encode()), value=_text(value))
    except urllib.error.HTTPError as error:
        if b"database space exceeded" not in error.read():
            raise
        return False
    return True


async def make_room(endpoints: list[str], prefix: str) -> None:
    """Do what docs/etcd.md says about a full etcd: delete, compact, defragment, disarm."""
    first = endpoints[0]
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    gone = await ask(
        first, "kv/deleterange", key=_text(prefix.encode()), range_end=_text(end.encode())
    )
    await ask(first, "kv/compaction", revision=gone["header"]["revision"], physical=True)
    for endpoint in endpoints:
        await ask(endpoint, "maintenance/defragment", within_s=30)
    for alarm in await alarms(first):
        await ask(first, "maintenance/alarm", action="DEACTIVATE", **alarm)


def _text(raw: bytes) -> str:
    return b64encode(raw).decode()
