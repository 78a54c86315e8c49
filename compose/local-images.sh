#!/bin/sh
# Build every image without a registry: a base of Debian's packages, and etcd from Debian's package.
# Needs root, debootstrap, docker and a python3 (or PYTHON) of the same version as Debian's. About two minutes.
# Writes compose/.env, which docker-compose reads; remove that file to go back to stock images.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
suite=${SUITE:-bookworm}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if ! docker image inspect baton-base:local >/dev/null 2>&1; then
  debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates \
    "$suite" "$work/base" ${MIRROR:-} >"$work/log" 2>&1 || { tail -20 "$work/log" >&2; exit 1; }
  rm -rf "$work/base/var/cache/apt/archives" "$work/base/var/lib/apt/lists" \
    "$work/base/usr/share/doc" "$work/base/usr/share/man" "$work/base/usr/share/locale"
  tar -C "$work/base" -c . | docker import - baton-base:local >/dev/null
fi
if ! docker image inspect baton-etcd:local >/dev/null 2>&1; then
  mkdir "$work/etcd"
  (cd "$work/etcd" && apt-get -qq download etcd-server etcd-client && for one in *.deb; do
    dpkg-deb -x "$one" .
  done && rm ./*.deb)
  printf 'FROM baton-base:local\nCOPY usr/bin/ /usr/local/bin/\n' >"$work/etcd/Dockerfile"
  docker build --quiet -t baton-etcd:local "$work/etcd" >/dev/null
fi
"$here/wheels.sh"
cat >"$here/.env" <<END
BASE_IMAGE=baton-base:local
ETCD_IMAGE=baton-etcd:local
PIP_NO_INDEX=1
END
docker build --quiet -f "$here/Dockerfile" --build-arg BASE_IMAGE=baton-base:local \
  --build-arg PIP_NO_INDEX=1 -t baton:local "$here/.." >/dev/null
docker image ls --format '{{.Repository}}:{{.Tag}} {{.Size}}' | grep -E '^baton'
