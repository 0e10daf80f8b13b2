#!/usr/bin/env bash
# Writes the lock files next to it from pyproject.toml. Call through `make lock`; commit the result.
#
# Pins already in dev.txt are kept while pyproject.toml allows them; COMPILE_ARGS="--upgrade" moves them all.
# Files for images have the hashes of each distribution. Files named -cuda pin the index's own build of torch with all that it
# brings; in the others torch has no hash, and what only its CUDA builds bring is left out: which build of the pinned
# release is installed is the installing machine's choice (see PIP_ARGS in docs/development.md).
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
# shellcheck disable=SC2086  # PIP_ARGS and COMPILE_ARGS are lists of words
"$work/venv/bin/pip" install --quiet ${PIP_ARGS:-} "uv==0.13.9"

compile() { # compile OUTPUT ARGUMENTS...: the lock file of extras
  compile_file "$1" pyproject.toml "${@:2}"
}

compile_file() { # compile_file OUTPUT SOURCE ARGUMENTS...: one lock file, for Linux and the oldest Python
  local output=$1 source=$2
  shift 2
  # The absence of addresses and of the command keeps the files the same wherever they are made.
  # shellcheck disable=SC2086
  "$work/venv/bin/uv" pip compile --quiet --no-header --native-tls --annotation-style=line \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 ${COMPILE_ARGS:-} "$@" \
    --output-file "$output" "$source"
  sed -i -e "s#,\{0,1\} *-[cr] $work/[a-z]*.\(txt\|in\)##" -e 's/# via, /# via /' -e '/^ *# via$/d' -e 's/ *# via$//' "$output"
}

any_torch() { # any_torch FILE: torch without hashes, and none of what only its CUDA builds bring
  awk '/^[^ ]/ { cuda = /^(cuda-|nvidia-|triton==)/; torch = /^torch==/; if (torch) print $1 }
       !cuda && !torch' "$1" >"$1.part"
  mv "$1.part" "$1"
}

cp deploy/env/dev.txt "$work/pins.txt" 2>/dev/null || touch "$work/pins.txt"
compile "$work/dev.txt" --constraint "$work/pins.txt" --extra service --extra trainer --extra heif --extra dev
any_torch "$work/dev.txt"
cp "$work/dev.txt" "$work/pins.txt"
compile "$work/service.txt" --generate-hashes --constraint "$work/pins.txt" --extra service
cp "$work/service.txt" "$work/service-cuda.txt"
any_torch "$work/service.txt"
compile "$work/trainer.txt" --generate-hashes --constraint "$work/pins.txt" --extra trainer
any_torch "$work/trainer.txt"
# Unsloth takes older versions of some packages than dev has; the model and what trains it stay the same.
grep -E '^(accelerate|numpy|peft|tokenizers|torch|transformers)==' "$work/pins.txt" >"$work/stack.txt"
compile "$work/trainer-cuda.txt" --generate-hashes --constraint "$work/stack.txt" --extra trainer --extra trainer-cuda
# Some clients take another major version of openai than the one that dev has.
sed -i '/^openai==/d' "$work/pins.txt"
compile "$work/clients.txt" --constraint "$work/pins.txt" --extra service --extra clients
any_torch "$work/clients.txt"
compile "$work/ray.txt" --constraint "$work/pins.txt" --extra service --extra bulk --extra ray
any_torch "$work/ray.txt"
# The site needs none of the project's packages, and the resolver would bring them.
grep '^docs = \[' pyproject.toml | grep -o '"[^"]*"' | tr -d '"' >"$work/docs.in"
compile_file "$work/docs.txt" "$work/docs.in"
for name in dev service service-cuda trainer trainer-cuda clients ray docs; do
  { echo "# Written by 'make lock' from pyproject.toml: change that file, then run it again."; cat "$work/$name.txt"; } \
    > "deploy/env/$name.txt"
done
