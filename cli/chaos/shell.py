"""Commands of the system that the kit calls, with what they said when they fail."""

import asyncio
import contextlib
import subprocess


class ToolFailed(RuntimeError):
    """A command of the system failed; the text has what it said."""


def why_not(*command: str) -> str:
    """Try a command that changes nothing; return why it failed, nothing when it did not. Blocks."""
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return tried.stderr.strip()[-200:] or "it says not why" if tried.returncode else ""


async def call(*command: str, stdin: str = "", within_s: float = 30.0) -> str:
    """Run a command that must succeed; return what it printed. Raises ToolFailed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(within_s):
            out, err = await process.communicate(stdin.encode())
    except TimeoutError:
        raise ToolFailed(f"{' '.join(command)}: no end within {within_s:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        raise ToolFailed(f"{' '.join(command)}: {err.decode(errors='replace').strip()}")
    return out.decode()
