"""Scenarios of several real workers: what they agreed to, and all of them dying in the same moment."""

import asyncio
import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

from syncengine.model import Rule, RunOptions, Safety
from tests.engine.trees import T0, grow, temporaries
from tests.faults.members import Members
from tests.faults.oracles import differences
from tests.faults.scenarios import every_content, scenario
from wire.orders import Outcome, RunEnded


@scenario("sync of three", RunOptions(rule=Rule.SYNC))
@dataclass
class Joint:
    """Three workers that all changed something, conflicts, a rename and a delete among it."""

    base: Path
    options: RunOptions
    is_slow: bool = True
    """Tried at one arrival of each step only."""

    def roots(self) -> list[Path]:
        return [self.base / name / "root" for name in "abc"]

    def _once(self) -> RunEnded:
        safety = Safety(max_delete=None, keep_replaced=True)
        members = Members(self.base, "abc", replace(self.options, safety=safety))

        async def once() -> RunEnded:
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(members.close)
                await members.open()
                return await members.run()

        return asyncio.run(once())

    def prepare(self) -> None:
        first = self.base / "a/root"
        grow(first, {"both": b"0", "gone": b"gone", "moved": b"moved" * 9, "d/e": b"e", "k": b"k"})
        for name in "bc":
            (self.base / name / "root").mkdir(parents=True)
        assert self._once().outcome is Outcome.SUCCEEDED
        one, two, three = self.roots()
        grow(one, {"both": b"of a, newer", "new/a": b"of a"}, T0 + 9)
        grow(two, {"both": b"of b", "new/b": b"of b", "d/e": b"edited"}, T0 + 5)
        (two / "gone").unlink()
        (three / "moved").rename(three / "d/moved")
        (three / "k").unlink()
        grow(three, {"k/now": b"a directory"}, T0 + 3)

    def run(self) -> bool:
        ended = self._once()
        return ended.outcome is Outcome.SUCCEEDED

    def check(self) -> None:
        """I7: every version that anybody wrote is in a tree or in a trash."""
        kept = set().union(*(every_content(root) for root in self.roots()))
        versions = {b"of a, newer", b"of a", b"of b", b"edited", b"moved" * 9, b"a directory"}
        assert versions - kept == set(), "lost (I7)"

    def check_end(self) -> None:
        again = self._once()
        counts = again.counts
        assert (counts.bytes_copied, counts.files_deleted, counts.files_renamed) == (0, 0, 0)
        one, *others = self.roots()
        for other in others:
            assert differences(one, other, options="-ani") == ""
        for root in self.roots():
            assert temporaries(root) == []
