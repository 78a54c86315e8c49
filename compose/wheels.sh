#!/bin/sh
# Fetch what the lock file names into compose/wheels, for image builds that reach no index.
# Run it with the Python version of the base image.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
stamp=compose/wheels/.made-from
now=$({ cat requirements.lock; "$python" -V; } | sha256sum)
[ "$(cat "$stamp" 2>/dev/null)" != "$now" ] || exit 0
"$python" -m pip --disable-pip-version-check download --quiet --require-hashes --no-deps \
  -r requirements.lock -d compose/wheels
# What the parts that come as source are built with, and Baton itself.
"$python" -m pip --disable-pip-version-check download --quiet -d compose/wheels setuptools wheel hatchling
printf %s "$now" >"$stamp"
