"""Job files: from YAML or JSON to `JobSpec`, and between `JobSpec` and its canonical JSON in etcd.

Every complaint names the document, the field and what would be right. Pure: text in, values out.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import lru_cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml

from coordinator.bandwidth import Bandwidth
from coordinator.errors import CoordinatorError
from coordinator.job import JobSpec
from coordinator.supported import unsupported
from coordinator.units import Limit, Quantity

MAX_SPEC_BYTES = 256 * 1024
"""The largest canonical JSON of a job; etcd takes 1.5 MiB a request by default."""


class JobFileInvalid(CoordinatorError):
    """A job file or a stored spec is not valid; `problems` has one sentence for each complaint."""

    def __init__(self, problems: list[str]) -> None:
        """Keep the sentences."""
        super().__init__("\n".join(problems))
        self.problems = problems


def read_job_file(text: str) -> list[JobSpec]:
    """Read all jobs of a file: YAML or JSON, one or many documents, or a list of jobs.

    Raises `JobFileInvalid` with what is wrong in each document.
    """
    jobs: list[JobSpec] = []
    problems: list[str] = []
    for number, document in enumerate(_documents(text), start=1):
        name = document.get("name") if isinstance(document, Mapping) else None
        where = f"document {number}" + (f" ({name})" if isinstance(name, str) else "")
        try:
            jobs.append(spec_from_plain(document))
        except JobFileInvalid as error:
            problems += [f"{where}: {problem}" for problem in error.problems]
    names = [job.name for job in jobs]
    problems += [
        f"name: {name} is used by {names.count(name)} documents: give each job its own"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    if problems:
        raise JobFileInvalid(problems)
    if not jobs:
        raise JobFileInvalid(["the file holds no job: write one with at least name and rule"])
    return jobs


def spec_from_plain(document: object) -> JobSpec:
    """Read one job from mappings, lists and scalars. Raises `JobFileInvalid`."""
    if not isinstance(document, Mapping):
        raise JobFileInvalid([f"a job is a mapping of fields, not {_kind(document)}"])
    problems = list(_unknown_fields(JobSpec, document, ()))
    if problems:
        raise JobFileInvalid(problems)
    try:
        spec = msgspec.convert(document, JobSpec, dec_hook=_read_quantity)
    except msgspec.ValidationError as error:
        raise JobFileInvalid([_complaint(str(error))]) from error
    problems = unsupported(spec)
    if problems:
        raise JobFileInvalid(problems)
    return spec


def encode_spec(spec: JobSpec) -> bytes:
    """Return the canonical JSON of a job: every field, sorted, as a job file would say it."""
    return json.dumps(spec_to_plain(spec), sort_keys=True, separators=(",", ":")).encode("ascii")


def decode_spec(data: bytes) -> JobSpec:
    """Read what `encode_spec` wrote, checking it like a job file. Raises `JobFileInvalid`."""
    if len(data) > MAX_SPEC_BYTES:
        raise JobFileInvalid([f"a job of {len(data)} bytes is too large: {MAX_SPEC_BYTES} at most"])
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise JobFileInvalid([f"not JSON: {error}"]) from error
    return spec_from_plain(document)


def spec_to_plain(spec: JobSpec) -> dict[str, Any]:
    """Return the job as mappings, lists and scalars; what does not apply is left out."""
    plain = msgspec.to_builtins(spec, enc_hook=_write_quantity)
    assert isinstance(plain, dict)
    return _without_none(plain)


def diff(old: JobSpec | None, new: JobSpec) -> list[str]:
    """Return what changes from one spec to the next, a line `field: old -> new` for each field."""
    before = _flat(spec_to_plain(old)) if old is not None else {}
    after = _flat(spec_to_plain(new))
    lines = []
    for field in dict.fromkeys([*before, *after]):
        was, becomes = before.get(field), after.get(field)
        if was != becomes:
            change = f"{_shown(was)} -> {_shown(becomes)}" if old is not None else _shown(becomes)
            lines.append(f"{field}: {change}")
    return lines


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of version 1.2: no dates, no 20:00 as a number, no yes, no, on, off.

    A mapping that says one thing twice is refused.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002  (PyYAML's signature)
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"field {twice!r} is there twice", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


_CORE = {
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
}
_Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))


def _documents(text: str) -> list[Any]:
    try:
        if text.lstrip()[:1] in {"{", "["}:
            documents = [_json_or_yaml(text)]
        else:
            documents = list(yaml.load_all(text, _Loader))
    except yaml.YAMLError as error:
        raise JobFileInvalid([f"not YAML: {_yaml_complaint(error)}"]) from error
    except RecursionError as error:
        raise JobFileInvalid(["the file is nested too deeply"]) from error
    jobs: list[Any] = []
    for document in documents:
        if document is None:
            continue  # what an editor leaves behind a last `---`
        jobs += document if isinstance(document, list) else [document]
    return jobs


def _json_or_yaml(text: str) -> Any:
    """Read what begins like JSON; flow-style YAML does too."""
    try:
        return json.loads(text)
    except ValueError:
        return list(yaml.load_all(text, _Loader))


def _yaml_complaint(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return str(error)


def _read_quantity(wanted: type, raw: object) -> Any:
    assert issubclass(wanted, Quantity), wanted
    return wanted.parse(raw)


def _write_quantity(value: object) -> int | str | list[dict[str, str]]:
    return value.plain() if isinstance(value, Limit | Bandwidth) else str(value)


def _unknown_fields(
    struct: type[msgspec.Struct], document: Mapping[Any, Any], path: tuple[str, ...]
) -> Iterator[str]:
    """Look for fields that nobody knows, all of them, and guess what was meant."""
    known = _parts_of(struct)
    for key, value in document.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(known)}"
            yield f"{'.'.join((*path, str(key)))}: unknown field: {hint}"
            continue
        inner = known[key]
        values = value if isinstance(value, list) else [value]
        for place, item in enumerate(values):
            if inner is not None and isinstance(item, Mapping):
                name = f"{key}[{place}]" if isinstance(value, list) else str(key)
                yield from _unknown_fields(inner, item, (*path, name))


@lru_cache
def _parts_of(struct: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct] | None]:
    """Return the names of a struct's fields, and which part of a job each holds, if any."""
    return {field.encode_name: _struct_in(field.type) for field in msgspec.structs.fields(struct)}


def _struct_in(wanted: Any) -> type[msgspec.Struct] | None:
    """Return the part of a job that a field holds, alone, optionally, or as a list."""
    for candidate in (wanted, *get_args(wanted)):
        if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            return candidate
    return None


_PLACE = re.compile(r"^(?P<what>.*?) - at `\$\.?(?P<path>.*)`$", re.DOTALL)


def _complaint(text: str) -> str:
    """Turn msgspec's sentence into `field: what is wrong: what would be right`."""
    found = _PLACE.match(text)
    if found is None:
        return text.replace("`", "")
    what, path = found["what"].replace("`", ""), found["path"]
    if not path:
        return what
    choices = _choices_at(path)
    return f"{path}: {what}" + (f": use one of {', '.join(choices)}" if choices else "")


def _choices_at(path: str) -> list[str]:
    """Return the values that a field can have when it has a fixed set of them."""
    wanted: Any = JobSpec
    for name in re.sub(r"\[[^]]*\]", "", path).split("."):
        struct = _struct_in(wanted)
        if struct is None:
            return []
        attribute = {f.encode_name: f.name for f in msgspec.structs.fields(struct)}.get(name)
        if attribute is None:
            return []
        wanted = get_type_hints(struct)[attribute]
    if get_origin(wanted) in {Union, UnionType}:
        wanted = get_args(wanted)[0]
    if isinstance(wanted, type) and issubclass(wanted, Enum):
        return [str(member.value) for member in wanted]
    return [str(choice) for choice in get_args(wanted) if isinstance(choice, str)]


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _without_none(plain: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in plain.items()
        if value is not None
    }


def _flat(plain: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{path}{key}.")
        else:
            flat[path + key] = value
    return flat


def _shown(value: object) -> str:
    return "(unset)" if value is None else json.dumps(value).strip('"')
