"""Debian packages as a source of fonts and texts: reads the list, downloads and unpacks.

Nothing is installed: archives are fetched by the ordinary package client and unpacked into a folder,
so that what is built depends on the list alone and not on what a machine happens to hold.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PACKAGE_LIST: Final = Path(__file__).with_name("packages.txt")
PURPOSES: Final = frozenset({"fonts", "text", "text-heldout", "words", "pages", "pages-heldout", "web"})
SKIPPED_PATTERNS: Final = ("*.png", "*.jpg", "*.ogg", "*.svg", "*.pdf", "*.js", "*.gif", "*.wav")


@dataclass(frozen=True, slots=True)
class SourcePackage:
    """One line of the package list.

    Attributes:
        name: the Debian package's name.
        purpose: one of `PURPOSES`.
        language: two-letter language of its texts; "*" where its paths tell.
    """

    name: str
    purpose: str
    language: str


def read_package_list(path: Path = PACKAGE_LIST) -> list[SourcePackage]:
    """Read the package list: lines `purpose language name...`, `#` starts a comment.

    Args:
        path: the list.

    Returns:
        The packages in the list's order.

    Raises:
        ValueError: a line has no name or an unknown purpose.
    """
    packages = []
    for line in path.read_text(encoding="utf-8").splitlines():
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        if len(fields) < 3 or fields[0] not in PURPOSES:
            raise ValueError(f"{path.name}: not 'purpose language name...': {line!r}")
        packages += [SourcePackage(name, fields[0], fields[1]) for name in fields[2:]]
    return packages


def unpack_packages(packages: list[SourcePackage], cache_dir: Path, keep: tuple[str, ...] = ()) -> dict[str, Path]:
    """Download the packages' archives and unpack them, each once.

    Args:
        packages: what to unpack.
        cache_dir: holds `archives/` and `unpacked/<package>/`; reused by later calls.
        keep: patterns of file names; where given, nothing else is unpacked, and into `kept/<package>/`.

    Returns:
        The unpacked folder of each package by name.

    Raises:
        RuntimeError: no package client on this machine, or it could not deliver.
    """
    archives, unpacked = cache_dir / "archives", cache_dir / ("kept" if keep else "unpacked")
    archives.mkdir(parents=True, exist_ok=True)
    unpacked.mkdir(exist_ok=True)
    missing = [package.name for package in packages if not list(archives.glob(f"{package.name}_*.deb"))]
    if missing:
        _download(missing, archives)
    folders = {}
    for package in packages:
        folders[package.name] = unpacked / package.name
        if not folders[package.name].is_dir():
            _unpack(next(iter(sorted(archives.glob(f"{package.name}_*.deb")))), folders[package.name], keep)
    return folders


def _download(names: list[str], archives: Path) -> None:
    client = shutil.which("apt-get")
    if client is None:
        raise RuntimeError("building from packages needs a Debian system: apt-get is not on this machine")
    outcome = subprocess.run(  # noqa: S603 - fixed program, names from the committed list
        [client, "download", "-qq", *names], cwd=archives, capture_output=True, text=True, check=False
    )
    if outcome.returncode != 0:
        raise RuntimeError(f"apt-get download failed (run 'apt-get update' first?): {outcome.stderr.strip()[-500:]}")


def _unpack(archive: Path, folder: Path, keep: tuple[str, ...]) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    opener = shutil.which("dpkg-deb")
    unpacker = shutil.which("tar")
    if opener is None or unpacker is None:
        raise RuntimeError("unpacking packages needs dpkg-deb and tar")
    with subprocess.Popen([opener, "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as stream:  # noqa: S603 - fixed program
        chosen = ["--wildcards", *keep] if keep else [f"--exclude={pattern}" for pattern in SKIPPED_PATTERNS]
        command = [unpacker, "-x", "-C", str(partial), *chosen]
        # tar complains of a pattern that no file matches; what it found is there all the same.
        subprocess.run(command, stdin=stream.stdout, check=not keep, stderr=subprocess.DEVNULL if keep else None)  # noqa: S603 - fixed program
    if stream.returncode != 0:
        raise RuntimeError(f"{archive.name}: could not be opened")
    partial.rename(folder)
