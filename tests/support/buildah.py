"""Builds and runs images with buildah, without a daemon, in a storage folder of its own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.programs import require

ENGINE_IMAGE_FORMAT = "docker"  # the OCI format has no place for HEALTHCHECK


class Buildah:
    """One private image store; everything lies under `folder`, so removing the folder removes it all."""

    def __init__(self, folder: Path, cache: Path) -> None:
        """Take `folder` for images and containers, and `cache` for what RUN --mount=type=cache keeps between builds."""
        self.folder = folder
        self._environment = {**os.environ, "TMPDIR": str(cache)}
        self._command = self._with_storage("overlay")
        probe = subprocess.run(self.command("info"), capture_output=True, timeout=60, check=False)
        if probe.returncode != 0:
            # As in a container, whose own root is an overlay. Each image and container is a whole copy then.
            self._command = self._with_storage("vfs")

    def _with_storage(self, driver: str) -> list[str]:
        place = self.folder / driver
        return [require("buildah"), f"--storage-driver={driver}", f"--root={place}", f"--runroot={place}-run"]

    def remove(self) -> None:
        """Remove all images and containers, with what is mounted of them."""
        self("rm", "--all")
        shutil.rmtree(self.folder)

    def command(self, *arguments: str) -> list[str]:
        return [*self._command, *arguments]

    def __call__(self, *arguments: str, timeout_s: float = 600) -> str:
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=self._environment,
        )
        assert done.returncode == 0, f"buildah {arguments[0]} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout.strip()

    def import_root(self, archive: Path, name: str) -> None:
        """Make an image of one layer from a tar archive of a root file system."""
        container = self("from", "scratch")
        self("add", container, str(archive), "/")
        self("commit", "--quiet", "--rm", container, name)

    def build(self, context: Path, dockerfile: str, name: str, base: str, options: Sequence[str]) -> str:
        return self(
            "bud", "--isolation=chroot", f"--format={ENGINE_IMAGE_FORMAT}", "--pull-never", f"--tag={name}",
            f"--build-arg=BASE_IMAGE={base}", f"--file={context / dockerfile}", *options, str(context),
            timeout_s=1800,  # on a busy machine
        )  # fmt: skip

    def config(self, image: str) -> dict[str, Any]:
        """What the image says of itself: `User`, `Entrypoint`, `Cmd`, `Healthcheck`, ..."""
        answer: dict[str, Any] = json.loads(self("inspect", "--type=image", image))
        config: dict[str, Any] = answer["Docker"]["config"]
        return config

    def run_command(self, container: str, command: Sequence[str], environment: dict[str, str]) -> list[str]:
        """Command line that runs something in a container, on this machine's network."""
        settings = [f"--env={name}={value}" for name, value in environment.items()]
        return self.command("run", "--isolation=chroot", *settings, container, "--", *command)


def host_pip_mounts(folder: Path) -> list[str]:
    """Options that let pip inside a build find packages where this machine's pip finds them.

    The settings pip reports are written to one file, and the local files and folders that they name (indexes and
    wheels on disk, certificates, constraints) are mounted read-only under the same names.
    """
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    settings: dict[str, str] = {}
    for line in sorted(listing.splitlines(), key=lambda line: line.startswith(":env:")):  # the environment wins
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = shlex.split(value)[0] if value else ""
    file = folder / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()), encoding="utf-8")
    places = {place for value in settings.values() for word in value.split() for place in _local_places(word)}
    return [f"--volume={place}:{place}:ro" for place in sorted(places)] + [f"--volume={file}:/etc/pip.conf:ro"]


def _local_places(word: str) -> list[str]:
    if word.startswith("file://"):
        # An index page points at files beside it, one folder up.
        return [str(Path(urlsplit(word).path).parent)]
    return [word] if word.startswith("/") and Path(word).exists() else []
