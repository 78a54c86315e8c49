"""`--config FILE` of the processes: TOML whose keys are the long options, with `_` for `-`.

A flag on the command line comes before the environment, that before the file, that before defaults.
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

_SEVERAL = frozenset({"root", "watch"})
"""Options that may be repeated: tables NAME = VALUE, or lists of NAME=VALUE, in a file."""


def load_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make a file's values the defaults of the command; for an eager `--config` option."""
    if path is None:
        return None
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise typer.BadParameter(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise typer.BadParameter(f"{path} is not TOML: {error}") from error
    known = [parameter.name or "" for parameter in context.command.params]
    context.default_map = {**(context.default_map or {}), **_defaults(path, found, known)}
    return path


def _defaults(path: Path, found: Mapping[str, Any], known: list[str]) -> dict[str, Any]:
    names = sorted(name for name in known if name and not name.startswith("_"))
    defaults: dict[str, Any] = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(names)}"
            raise typer.BadParameter(f"{path}: {key}: unknown field: {hint}")
        defaults[name] = _value(path, key, value)
    return defaults


def _value(path: Path, key: str, value: Any) -> Any:
    """Return a value as the option reads it: URLs joined by commas, roots as NAME=PATH."""
    if key == "etcd" and isinstance(value, list):
        return ",".join(str(url) for url in value)
    if key in _SEVERAL and isinstance(value, dict):
        return [f"{name}={root}" for name, root in value.items()]
    if key in _SEVERAL and isinstance(value, str):
        return [value]
    if isinstance(value, dict) or (isinstance(value, list) and key not in _SEVERAL):
        raise typer.BadParameter(f"{path}: {key}: use one value")
    return value
