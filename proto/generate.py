"""Generate the wire code beside its .proto files, or check that it is up to date.

`python proto/generate.py` writes; `--check` generates into a temporary directory and fails on any
difference. Messages and services come from grpcio-tools, their types from mypy-protobuf.
"""

import argparse
import difflib
import os
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
_SHOWN_LINES = 40


def generate(out: Path) -> None:
    """Run protoc for every .proto file below this directory, into `out`."""
    protos = sorted(str(path.relative_to(HERE)) for path in HERE.rglob("*.proto"))
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    arguments = [
        "protoc",
        f"--proto_path={HERE}",
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
        *protos,
    ]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed; its messages are above")


def generated(base: Path) -> dict[str, str]:
    """Return the generated files below `base` with their texts."""
    found = [*base.rglob("*_pb2*.py"), *base.rglob("*_pb2*.pyi")]
    return {str(path.relative_to(base)): path.read_text() for path in sorted(found)}


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail on a difference, write nothing")
    if not parser.parse_args().check:
        for name in generated(HERE):
            (HERE / name).unlink()
        generate(HERE)
        return
    with tempfile.TemporaryDirectory() as directory:
        generate(Path(directory))
        fresh, committed = generated(Path(directory)), generated(HERE)
    stale = [
        name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name)
    ]
    for name in sorted(stale):
        before, after = (
            committed.get(name, "").splitlines(True),
            fresh.get(name, "").splitlines(True),
        )
        sys.stderr.writelines(list(difflib.unified_diff(before, after, name, name))[:_SHOWN_LINES])
    if stale:
        names = ", ".join(sorted(stale))
        sys.exit(f"generated code is not what the .proto files say: {names}; run: make proto")


if __name__ == "__main__":
    main()
