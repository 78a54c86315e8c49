"""The API's values on the wire: whatever a coordinator says, the command reads the same."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator import convert, views

text = st.text(st.characters(codec="utf-8"), max_size=12)
named = text.filter(bool)
maybe = st.none() | named
count = st.integers(0, 2**63 - 1)
small = st.integers(0, 2**31 - 1)
flag = st.booleans()
path = st.binary(max_size=12).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
number = st.floats(0, 1e12)
plain = st.recursive(
    st.none() | flag | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(named, inner, max_size=3),
    max_leaves=8,
)


def several(what: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(what, max_size=3).map(tuple)


coordinators = st.builds(
    views.CoordinatorView,
    named,
    text,
    text,
    text,
    maybe,
    small,
    flag,
    maybe,
    text,
    st.none() | number,
)
roots = st.builds(views.RootView, text, text, flag, flag, count)
workers = st.builds(
    views.WorkerView, named, text, text, flag, text, text, text, several(roots), count
)
tests = st.builds(views.WorkerTestView, named, text, text, text, several(roots), number, number)
takeovers = st.builds(views.TakeoverView, maybe, text, number, number, text)
jobs = st.builds(
    views.JobView,
    takeover=takeovers,
    name=named,
    phase=text,
    reason=text,
    owner=maybe,
    token=maybe,
    lease_ttl_s=number,
    owner_since=maybe,
    next_due=maybe,
    last_run=maybe,
    last_outcome=maybe,
    last_success=maybe,
    exposure_s=st.dictionaries(named, st.none() | number, max_size=3),
    generation=count,
    spec=st.dictionaries(named, plain, max_size=3),
)
attempts = st.builds(views.AttemptView, text, text, maybe, maybe, maybe)
problems = st.builds(views.ProblemView, path, text, text, text)
holds = st.builds(views.HoldView, text, text, text)
progresses = st.none() | st.builds(views.ProgressView, text, count, count, count, count)
COUNTS = (
    *(f"files_{what}" for what in ("scanned", "copied", "updated", "deleted", "renamed")),
    *("bytes_copied", "bytes_sent", "conflicts", "errors_total"),
)
runs = st.builds(
    views.RunView,
    job=named,
    id=named,
    due=maybe,
    started=maybe,
    ended=maybe,
    outcome=text,
    reason=text,
    attempts=several(attempts),
    **dict.fromkeys(COUNTS, count),
    errors=several(problems),
    holds=several(holds),
    plan=maybe,
    progress=progresses,
)
changes = st.builds(views.ChangeView, path, text, text, text, count)
previews = st.builds(
    views.PreviewView, several(changes), several(problems), several(holds), flag, text
)
applied = st.builds(views.AppliedView, named, text, several(text), count, several(text))
accepted = st.builds(views.AcceptedView, named, text, count, count)
explained = st.builds(views.ExplainView, named, maybe, several(text), several(text))
statuses = st.builds(
    views.StatusView,
    text,
    several(coordinators),
    several(workers),
    several(jobs),
    several(text),
)

Convert = Callable[[Any], Any]
KINDS: dict[str, tuple[st.SearchStrategy[Any], Convert, Convert]] = {
    "coordinator": (coordinators, convert.coordinator_to_wire, convert.coordinator_from_wire),
    "worker": (workers, convert.worker_to_wire, convert.worker_from_wire),
    "test": (tests, convert.test_to_wire, convert.test_from_wire),
    "job": (jobs, convert.job_to_wire, convert.job_from_wire),
    "run": (runs, convert.run_to_wire, convert.run_from_wire),
    "preview": (previews, convert.preview_to_wire, convert.preview_from_wire),
    "applied": (applied, convert.applied_to_wire, convert.applied_from_wire),
    "accepted": (accepted, convert.accepted_to_wire, convert.accepted_from_wire),
    "explain": (explained, convert.explain_to_wire, convert.explain_from_wire),
    "status": (statuses, convert.status_to_wire, convert.status_from_wire),
}


def test_every_conversion_has_its_round_trip() -> None:
    ways = {name for name in vars(convert) if name.endswith(("_to_wire", "_from_wire"))}
    public = {name for name in ways if not name.startswith("_")}
    assert public == {f"{kind}_{way}_wire" for kind in KINDS for way in ("to", "from")}


@pytest.mark.parametrize("kind", KINDS)
def test_views_come_back_as_they_were(kind: str) -> None:
    strategy, to_wire, from_wire = KINDS[kind]

    @given(strategy)
    def check(view: Any) -> None:
        message = to_wire(view)
        assert from_wire(type(message).FromString(message.SerializeToString())) == view

    check()
