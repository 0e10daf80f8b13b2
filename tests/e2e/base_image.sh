#!/usr/bin/env bash
# Makes the root file system that the image test builds upon, and prints the path of its tar archive.
#
# Debian's own bootstrap stands in for a registry's base image, so the test needs no registry. The archive is kept in
# the user's cache folder and made once: .ci/run starts this early, and a second caller waits for the first.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"

suite=$(. /etc/os-release && echo "${VERSION_CODENAME:?this system has no release name}")
cache="${XDG_CACHE_HOME:-$HOME/.cache}/deepsynth-ocr"
archive="$cache/base-$suite-1.tar"
mkdir -p "$cache"

exec 9>"$cache/base.lock"
flock 9
if [ ! -f "$archive" ]; then
  work=$(mktemp -d)
  trap 'rm -rf --one-file-system "$work" "$archive.part"' EXIT
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$work/root" >"$work/log" 2>&1 ||
    { tail -n 20 "$work/log" >&2; exit 1; }
  rm -rf "$work/root/var/cache/apt/archives" "$work/root/var/lib/apt/lists" "$work/root/usr/share/doc"
  tar -C "$work/root" --one-file-system -cf "$archive.part" .
  mv "$archive.part" "$archive"
fi
echo "$archive"
