"""I11: in which order a plan's independent changes are carried out makes no difference."""

import os
import random
from collections.abc import Iterator
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from syncengine.changes import Change
from syncengine.phases import Phase, Plan
from syncengine.tree import Tree
from tests.engine.test_properties import TREES, two
from tests.engine.trees import picture, temporaries


class Shuffled:
    """A plan whose changes come in another order of each phase, as far as none needs another one.

    What lies deeper goes after what it lies in where things are made, and before it where they go.
    """

    def __init__(self, plan: Plan, seed: int) -> None:
        self._plan = plan
        self._seed = seed

    def __getattr__(self, name: str) -> object:
        return getattr(self._plan, name)

    def phase(self, phase: Phase) -> Iterator[Change]:
        changes = list(self._plan.phase(phase))
        if phase is Phase.MAKE_WAY:
            return iter(changes)  # each group of removals makes way for one thing
        random.Random(self._seed).shuffle(changes)
        changes.sort(key=_depth, reverse=phase is not Phase.MAKE)
        return iter(changes)


def _depth(change: Change) -> int:
    return change.path.count(b"/") + 1 if change.path else 0


@settings(max_examples=50, deadline=None)
@given(source=TREES, target=TREES, turn=st.integers(0, 2), seed=st.integers(0, 1_000))
def test_i11_the_order_of_independent_changes_does_not_matter(
    source: dict[str, object], target: dict[str, object], turn: int, seed: int
) -> None:
    with (
        two(source, target, turn) as pair,
        Tree.open(os.fsencode(pair.source), read_only=True) as ours,
        Tree.open(os.fsencode(pair.target)) as theirs,
        pair.plan(ours, theirs) as plan,
    ):
        result = pair.push(ours, theirs, cast("Plan", Shuffled(plan, seed)))
        assert result.is_complete
        assert result.problems == []
        assert result.retry == []
        with pair.preview() as again:
            assert again.is_empty, list(again)
        assert temporaries(pair.target) == []
        assert picture(pair.target).keys() == picture(pair.source).keys()
