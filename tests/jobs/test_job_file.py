import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.job import JobSpec
from coordinator.job_file import (
    JobFileInvalid,
    decode_spec,
    diff,
    encode_spec,
    read_job_file,
    spec_from_plain,
    spec_to_plain,
)
from syncengine.model import Compare, Durability, Limits, Rule, RunOptions, Safety
from wire.orders import Member

WHOLE = """
name: projects                     # a DNS label
rule: mirror
source: nas1:projects/active
targets: [nas2:projects/active, dr:projects]
trigger: {every: 15m, from: end}
copy_when: differing
conflict: keep-both
placement: {nodes: [c1], fallback: true, failback: never}
lease_ttl: 5s
missed: latest
missed_within: 24h
overlap: skip
retries: {attempts: 3, delay: 30s, backoff: 2}
windows: []
filters: []
limits: {max_size: off, min_size: off, min_age: off, max_age: off}
safety: {max_delete: 50%, max_delete_files: 100000, trash: 30d, keep_replaced: false}
metadata: {mode: true, times: true, owner: true, xattrs: true, acls: true, hardlinks: true,
           devices: false, setuid: false, symlinks: keep}
transfer: {compression: auto, delta: auto, durability: strict, compare: mtime}
"""
SMALL: dict[str, Any] = {"name": "a", "rule": "mirror", "source": "w1:r", "targets": ["w2:r"]}


def small(**fields: Any) -> dict[str, Any]:
    return {**SMALL, **fields}


def complaint(document: object) -> str:
    with pytest.raises(JobFileInvalid) as caught:
        spec_from_plain(document)
    return "\n".join(caught.value.problems)


def test_the_job_file_of_the_documentation() -> None:
    (job,) = read_job_file(WHOLE)
    assert job.rule is Rule.MIRROR
    assert job.source_member == Member("nas1", "projects", b"active")
    assert job.target_members == (Member("nas2", "projects", b"active"), Member("dr", "projects"))
    assert job.workers == ("nas1", "nas2", "dr")
    assert job.trigger.every is not None
    assert job.trigger.every.seconds == 900
    assert job.run_options() == RunOptions(
        keep_owner=True, keep_xattrs=True, keep_acls=True, keep_hardlinks=True
    )


def test_defaults_are_those_of_the_documentation() -> None:
    (whole,) = read_job_file(WHOLE.replace("{nodes: [c1], ", "{").replace("trigger:", "#"))
    (short,) = read_job_file(
        "{name: projects, rule: mirror, source: nas1:projects/active, "
        "targets: [nas2:projects/active, dr:projects]}"
    )
    assert whole.attempts_of(by_hand=False) == short.attempts_of(by_hand=False)
    assert short.attempts_of(by_hand=True).attempts == 1, "unless the file says so"
    changed = diff(whole, short)
    assert all(line.startswith("retries.") for line in changed), changed


def test_what_begins_runs_later_or_ends_them_is_off_unless_said() -> None:
    job = spec_from_plain(small())
    assert (job.priority, job.time_limit.limit_s, job.start_jitter.limit_s) == (0, None, None)
    fields = {"start_jitter": "4m", "time_limit": "2h", "priority": -3}
    job = spec_from_plain(small(trigger={"every": "5m"}, **fields))
    assert (job.priority, job.time_limit.limit_s, job.start_jitter.limit_s) == (-3, 7200, 240)


def test_options_reach_the_engine() -> None:
    job = spec_from_plain(
        small(
            safety={
                "max_delete": "off",
                "max_delete_files": "off",
                "trash": "off",
                "keep_replaced": True,
            },
            metadata={"mode": False, "times": False, "setuid": True},
            transfer={"durability": "fast", "compare": "checksum"},
        )
    )
    assert job.run_options() == RunOptions(
        compare=Compare.CHECKSUM,
        durability=Durability.FAST,
        keep_mode=False,
        keep_times=False,
        keep_owner=True,
        keep_xattrs=True,
        keep_acls=True,
        keep_hardlinks=True,
        keep_setuid=True,
        safety=Safety(None, None, None, True),
    )


def test_filters_and_limits_reach_the_engine() -> None:
    limits = {"max_size": "10GB", "min_size": "1B", "min_age": "5m", "max_age": "30d"}
    job = spec_from_plain(small(filters=["*.tmp", "/cache/", "!keep.tmp", "# é"], limits=limits))
    assert job.run_options().filters == ("*.tmp", "/cache/", "!keep.tmp", "# é")
    assert job.run_options().limits == Limits(1, 10**10, 300, 30 * 86_400)
    assert decode_spec(encode_spec(job)) == job
    assert spec_to_plain(job)["limits"] == limits


def test_many_documents_and_lists_and_json() -> None:
    rest = "\nrule: mirror\nsource: w1:r\ntargets: "
    yaml = f"name: a{rest}[w2:r]\n---\nname: b{rest}[w3:r]\n---\n"
    both = read_job_file(yaml)
    assert [job.name for job in both] == ["a", "b"]
    assert read_job_file(json.dumps([spec_to_plain(job) for job in both], indent="\t")) == both
    assert read_job_file(json.dumps(SMALL)) == both[:1]


def test_complaints_name_document_and_field() -> None:
    with pytest.raises(JobFileInvalid) as caught:
        read_job_file("name: a\nrule: mirro\n---\nname: b\nrule: mirror\nsafty: {}\n")
    assert caught.value.problems == [
        (
            "document 1 (a): rule: Invalid enum value 'mirro': "
            "use one of mirror, copy, move, sync, exchange"
        ),
        "document 2 (b): safty: unknown field: did you mean safety?",
    ]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "A"}, "name: 'A' is no DNS label"),
        ({"name": 5}, "name: Expected str, got int"),
        ({"lease_ttl": "1s"}, "lease_ttl: 1s is out of range: use whole seconds from 2s to 60s"),
        ({"lease_ttl": "2500ms"}, "whole seconds"),
        ({"lease_ttl": 5}, "lease_ttl: 5 is no duration: use for example 50ms"),
        ({"safety": {"max_delete": "50"}}, "safety.max_delete: '50' is no share: use a percentage"),
        ({"safety": {"maxdelete": "50%"}}, "did you mean max_delete?"),
        ({"safety": {"zzz": 1}}, "use one of max_delete, max_delete_files, trash, keep_replaced"),
        ({"safety": None}, "safety: Expected object, got null"),
        ({"transfer": {"compare": "md5"}}, "Invalid enum value 'md5': use one of mtime, checksum"),
        ({"transfer": {"delta": "maybe"}}, "value 'maybe': use one of auto, on, off"),
        ({"metadata": {"mode": "yes"}}, "metadata.mode: Expected bool, got str"),
        ({"trigger": {"cron": "0 0 30 2 *"}}, "trigger: cron: '0 0 30 2 *' is no cron expression"),
        (
            {"trigger": {"cron": "0 2 * * *", "timezone": "Mars/Base"}},
            "trigger: timezone: 'Mars/Base' is no time zone",
        ),
        (
            {"trigger": {"every": "5m", "timezone": "Europe/Paris"}},
            "trigger: timezone says nothing without cron or windows",
        ),
        (
            {"windows": [{"from": "20:00", "to": "20:00"}]},
            "windows[0]: to: a window from 20:00 to 20:00 never opens",
        ),
        ({"retries": {"attempts": 0}}, "retries: attempts 0 is out of range: use 1 to 100"),
        ({"trigger": {"every": "5m", "manual": True}}, "trigger: has 2 forms: use exactly one of"),
        ({"trigger": {}}, "trigger: has 0 forms"),
        ({"trigger": {"every": "10ms"}}, "use 1s or more"),
        ({"trigger": {"manual": True, "from": "end"}}, "trigger: from belongs to every"),
        ({"trigger": "manual"}, "trigger: Expected object, got str"),
        ({"placement": {"nodes": ["C1"]}}, "placement: nodes: 'C1' is no name"),
        ({"placement": {"fallback": False}}, "name nodes"),
        ({"placement": {"failback": "always"}}, "placement.failback"),
        ({"targets": "w2:r"}, "targets: Expected array, got str"),
        ({"targets": []}, "targets: rule mirror needs at least one"),
        ({"targets": [5]}, "targets[0]"),
        ({"source": None}, "source: rule mirror needs one"),
        ({"members": ["w1:r", "w2:r"]}, "members: rule mirror has source and targets instead"),
        ({"conflict": "newest"}, "conflict: newest is for rules sync and exchange"),
        ({"copy_when": "always"}, "copy_when: always is for rule copy"),
        ({"windows": [{"from": "1", "to": "2", "dayz": "mon"}]}, "did you mean days?"),
        ({"filters": "*.tmp"}, "filters: Expected array, got str"),
        ({"filters": [5]}, "filters[0]: Expected str, got int"),
        ({"filters": ["*.o", "a[b"]}, "filters[1]: 'a[b' has a [ without its ]: escape it"),
        ({"filters": ["../x"]}, "filters[0]: '../x' matches nothing: patterns begin at the top"),
        ({"filters": ["caf\udce9"]}, "filters[0]: 'caf\\udce9' has a byte that is no UTF-8: put ?"),
        ({"limits": {"max_size": 10}}, "limits.max_size: 10 is no size: use for example 1B"),
        ({"limits": {"max_age": "old"}}, "limits.max_age: 'old' is no duration"),
        ({"limits": {"maxsize": "1B"}}, "limits.maxsize: unknown field: did you mean max_size?"),
        (
            {"limits": {"min_size": "2kB", "max_size": "1kB"}},
            "limits: no file is within min_size 2kB and max_size 1kB: use a larger max_size",
        ),
        ({"limits": {"min_age": "2h", "max_age": "1h"}}, "use a larger max_age"),
        ({"priority": 101}, "priority: 101 is out of range: use -100 to 100"),
        ({"priority": "high"}, "priority: Expected int, got str"),
        ({"priority": True}, "priority: Expected int, got bool"),
        ({"time_limit": "500ms"}, "time_limit: 500ms is too short: use 1s or more, or off"),
        ({"time_limit": 5}, "time_limit: 5 is no duration"),
        (
            {"time_limit": "2h", "trigger": {"realtime": {}}},
            "time_limit: a run of trigger realtime does not end",
        ),
        ({"start_jitter": "1m"}, "start_jitter: is for the triggers every and cron"),
        (
            {"start_jitter": "5m", "trigger": {"every": "5m"}},
            "start_jitter: 5m reaches to the next instant, 300 s later: use less",
        ),
        (
            {"start_jitter": "10m", "trigger": {"cron": "0,10 2 * * *"}},
            "start_jitter: 10m reaches to the next instant, 600 s later",
        ),
    ],
)
def test_complaints_say_what_would_be_right(fields: dict[str, Any], said: str) -> None:
    assert said in complaint(small(**fields))


@pytest.mark.parametrize("missing", ["name", "rule"])
def test_a_missing_field_is_named(missing: str) -> None:
    document = {key: value for key, value in SMALL.items() if key != missing}
    assert f"required field {missing}" in complaint(document)


@pytest.mark.parametrize("document", [None, 5, "text", [1]])
def test_a_job_is_a_mapping(document: object) -> None:
    assert "mapping" in complaint(document)


@pytest.mark.parametrize(
    "member",
    [
        "w1",
        "w1:",
        ":r",
        "w1:r/",
        "w1:r//a",
        "w1:r/../x",
        "w1:r/a/..",
        "w1:/etc",
        "w1:r/.",
        "w1:r/a\0b",
        "w1:r/.baton",
        "w1:r/a/.baton/trash",
        "w1:r/.baton~x",
        "W1:r",
        "w1:r:x",
        "w1:..",
        "w1:.",
        "w1:r/" + "x" * 256,
        "w1:r" + "/abcdefgh" * 500,
        "w1:r/\ud800",
    ],
)
def test_i14_a_member_cannot_leave_its_root(member: str) -> None:
    assert "source: " in complaint(small(source=member))
    assert "targets[0]: " in complaint(small(targets=[member]))


def test_a_members_own_path_is_text() -> None:
    job = spec_from_plain(small(source="w1:r/café"))
    assert job.source_member.path == "café".encode()
    assert decode_spec(encode_spec(job)) == job
    assert "no UTF-8" in complaint(small(source="w1:r/caf\udce9"))


@pytest.mark.parametrize(
    ("source", "targets", "field"),
    [
        ("w1:r", ["w1:r"], "targets[0]"),
        ("w1:r", ["w1:r/sub"], "targets[0]"),
        ("w1:r/a/b", ["w2:r", "w1:r/a"], "targets[1]"),
        ("w1:r", ["w2:r/a", "w2:r/a/b"], "targets[1]"),
        ("w1:r", ["w2:r", "w2:r"], "targets[1]"),
    ],
)
def test_members_of_one_job_share_nothing(source: str, targets: list[str], field: str) -> None:
    assert f"{field}: " in complaint(small(source=source, targets=targets))
    assert "overlaps" in complaint(small(source=source, targets=targets))


def test_neighbours_do_not_overlap() -> None:
    spec_from_plain(small(source="w1:r/a", targets=["w1:r/ab", "w1:r2/a", "w2:r/a"]))


@pytest.mark.parametrize("said", [{"settle": "0s"}, {"settle": "2h"}, {"audit": "500ms"}])
def test_a_monitor_neither_waits_for_ever_nor_compares_all_the_time(said: dict[str, str]) -> None:
    (field,) = said
    assert f"{field} {said[field]} is" in complaint(small(trigger={"realtime": said}))
    spec_from_plain(small(trigger={"realtime": {"settle": "20ms", "audit": "1s"}}))


def test_what_is_not_carried_out_is_refused_by_name() -> None:
    two: dict[str, Any] = {"rule": "sync", "members": ["w1:r", "w2:r"]}
    asked = {**two, "source": None, "targets": [], "trigger": {"realtime": {}}}
    assert "trigger: this version of Baton does not carry that out yet: " in complaint(
        small(**asked)
    )
    spec_from_plain(small(trigger={"realtime": {}}))


def test_yaml_scalars_are_what_they_look_like() -> None:
    (job,) = read_job_file(
        "name: on\nrule: mirror\nsource: w1:r\ntargets: [w2:1]\n"
        "safety: {max_delete: off, trash: off, max_delete_files: off}\n"
    )
    assert job.name == "on"
    assert str(job.safety.max_delete) == str(job.safety.trash) == "off"
    (job,) = read_job_file(
        "name: a\nrule: mirror\nsource: w1:r\ntargets: [w2:r]\n"
        "windows: [{days: mon-fri, from: 20:00, to: 06:00}]\n"
    )
    assert (job.windows[0].from_, job.windows[0].to) == ("20:00", "06:00")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no job"),
        ("# nothing\n---\n", "holds no job"),
        ("name: [", "line 1, column"),
        ("name: a\nname: b\nrule: mirror\n", "'name' is there twice"),
        ("name: !!python/object/apply:os.system [id]\n", "not YAML"),
        ("[" * 5000, "nested too deeply|not YAML"),
        (json.dumps([SMALL, SMALL]), "name: a is used by 2 documents"),
        ("just text", "mapping"),
    ],
)
def test_files_that_are_none(text: str, said: str) -> None:
    with pytest.raises(JobFileInvalid, match=said):
        read_job_file(text)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"x" * 300_000])
def test_bytes_that_are_no_spec(data: bytes) -> None:
    with pytest.raises(JobFileInvalid):
        decode_spec(data)


def test_the_canonical_form_is_readable_and_complete() -> None:
    plain = json.loads(encode_spec(spec_from_plain(small(trigger={"every": "15m"}))))
    assert plain["lease_ttl"] == "5s"
    assert plain["safety"] == {
        "max_delete": "50%",
        "max_delete_files": 100_000,
        "trash": "30d",
        "keep_replaced": False,
    }
    assert plain["trigger"] == {"every": "15m"}
    assert "members" in plain
    assert plain["transfer"]["bandwidth"] == "off"


def test_differences_name_fields_and_both_values() -> None:
    old = spec_from_plain(SMALL)
    new = spec_from_plain(
        small(targets=["w2:r", "w3:r"], safety={"max_delete": "10%"}, trigger={"every": "5m"})
    )
    assert sorted(diff(old, new)) == [
        "safety.max_delete: 50% -> 10%",
        'targets: ["w2:r"] -> ["w2:r", "w3:r"]',
        "trigger.every: (unset) -> 5m",
        "trigger.manual: true -> (unset)",
    ]
    assert diff(old, old) == []
    assert "name: a" in diff(None, old)


MILLISECONDS = st.integers(0, 10**9).map(lambda value: f"{value}ms")
DOCUMENTS = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[a-z0-9]{1,9}", fullmatch=True),
        "rule": st.just("mirror"),
        "source": st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=9)
        .filter(lambda path: not set(path) & set("/\0") and path not in {".", ".."})
        .filter(lambda path: not path.startswith(".baton"))
        .map(lambda path: f"w1:r/{path}"),
        "targets": st.lists(
            st.integers(2, 99).map("w{}:r".format), min_size=1, max_size=3, unique=True
        ),
    },
    optional={
        "trigger": st.one_of(
            st.just({"manual": True}),
            st.fixed_dictionaries(
                {"every": st.integers(1, 10**6).map("{}s".format)},
                optional={"from": st.sampled_from(["start", "end"])},
            ),
        ),
        "lease_ttl": st.integers(2, 60).map("{}s".format),
        "priority": st.integers(-100, 100),
        "time_limit": st.one_of(st.just("off"), st.integers(1, 10**6).map("{}s".format)),
        "missed": st.sampled_from(["skip", "latest", "all"]),
        "missed_within": MILLISECONDS,
        "overlap": st.sampled_from(["skip", "queue", "cancel"]),
        "safety": st.fixed_dictionaries(
            {},
            optional={
                "max_delete": st.one_of(st.just("off"), st.integers(0, 100).map("{}%".format)),
                "max_delete_files": st.one_of(st.just("off"), st.integers(0, 10**9)),
                "trash": st.one_of(st.just("off"), MILLISECONDS),
                "keep_replaced": st.booleans(),
            },
        ),
    },
)


@given(DOCUMENTS)
def test_every_spec_reads_back_from_its_canonical_form(document: dict[str, Any]) -> None:
    job = spec_from_plain(document)
    encoded = encode_spec(job)
    again = decode_spec(encoded)
    assert again == job
    assert encode_spec(again) == encoded
    assert read_job_file(encoded.decode()) == [job]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(JobSpec.__struct_fields__), inner)
        ),
    )
)
def test_whatever_is_no_job_is_refused_with_a_complaint(document: object) -> None:
    try:
        spec_from_plain(document)
    except JobFileInvalid as error:
        problems = error.problems
    else:
        problems = ["it was a job after all"]
    assert all(problems)
