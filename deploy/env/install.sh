#!/bin/sh
# Installs a lock file, in an image or for `make serve`: install.sh service|trainer cpu|cuda [ARGUMENT OF PIP...]
#
# Every distribution must have a hash of the lock file. The one line without is torch where any build of it will do: pip
# takes that one from where PIP_ARGS says, after everything that it needs.
set -eu
lock="$(dirname "$0")/$1$([ "$2" = cuda ] && echo -cuda || true).txt"
shift 2
rest=$(mktemp)
grep -v '^torch==[^ ]*$' "$lock" >"$rest"
pip install --disable-pip-version-check "$@" --require-hashes --no-deps -r "$rest"
if torch=$(grep '^torch==[^ ]*$' "$lock"); then
  # shellcheck disable=SC2086  # a list of words
  pip install --disable-pip-version-check "$@" ${PIP_ARGS:-} "$torch"
fi
rm "$rest"
pip check --disable-pip-version-check
