#!/usr/bin/env bash
# Writes the lock files next to it from pyproject.toml. Call through `make lock`; commit the result.
#
# Pins already in dev.txt are kept while pyproject.toml allows them; PIP_COMPILE_ARGS="--upgrade" moves them all.
# The local version of torch ("+cpu") is cut off: which build of the pinned release is installed is the
# installing machine's choice (see PIP_ARGS in docs/development.md).
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
# shellcheck disable=SC2086  # PIP_ARGS and PIP_COMPILE_ARGS are lists of words
"$work/venv/bin/pip" install --quiet ${PIP_ARGS:-} "pip-tools==7.6.2"

compile() { # compile OUTPUT ARGUMENTS...: one lock file
  local output=$1
  shift
  # The order of columns and the absence of addresses keep the files the same wherever they are made.
  # shellcheck disable=SC2086
  "$work/venv/bin/pip-compile" --quiet --strip-extras --no-header --annotation-style=line --allow-unsafe \
    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options \
    "$@" --output-file "$output" pyproject.toml
  sed -i -e 's/^\(torch==[0-9.]*\)+[a-z0-9]*/\1/' -e "s# *-c $work/pins.txt,\{0,1\}##" "$output"
}

cp deploy/env/dev.txt "$work/pins.txt" 2>/dev/null || touch "$work/pins.txt"
# shellcheck disable=SC2086
compile "$work/dev.txt" --constraint "$work/pins.txt" ${PIP_COMPILE_ARGS:-} --extra service --extra trainer --extra heif --extra dev
cp "$work/dev.txt" "$work/pins.txt"
compile "$work/service.txt" --constraint "$work/pins.txt" --extra service
compile "$work/trainer.txt" --constraint "$work/pins.txt" --extra trainer
# Some clients take another major version of openai than the one that dev has.
sed -i '/^openai==/d' "$work/pins.txt"
compile "$work/clients.txt" --constraint "$work/pins.txt" --extra service --extra clients
for name in dev service trainer clients; do
  { echo "# Written by 'make lock' from pyproject.toml: change that file, then run it again."; cat "$work/$name.txt"; } \
    > "deploy/env/$name.txt"
done
