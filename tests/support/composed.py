"""Starts what docker-compose.yml describes as processes of this machine: its commands, environments and volumes.

Where no container runtime is at hand, each volume is a folder, each mount target in a command or an environment is
replaced by that folder, and each published service has a port of its own. Names of services become this machine.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.programs import ROOT, free_port, stop_session

PROGRAMS = {"Dockerfile.api": "service", "Dockerfile.train": "trainer"}


def entrypoint(dockerfile: str) -> list[str]:
    """The command of an image, run by this interpreter."""
    text = (ROOT / dockerfile).read_text(encoding="utf-8")
    words: list[str] = json.loads(_instruction(text, "ENTRYPOINT"))
    assert words == ["python", "-m", PROGRAMS[dockerfile]]
    return [sys.executable, *words[1:]]


def default_arguments(dockerfile: str) -> list[str]:
    words: list[str] = json.loads(_instruction((ROOT / dockerfile).read_text(encoding="utf-8"), "CMD"))
    return words


def health_check(dockerfile: str) -> list[str]:
    text = (ROOT / dockerfile).read_text(encoding="utf-8")
    check = re.search(r"^HEALTHCHECK .*?\n\s+CMD (\[.*\])$", text, re.MULTILINE)
    assert check is not None
    words: list[str] = json.loads(check.group(1))
    return [sys.executable, *words[1:]]


def _instruction(text: str, name: str) -> str:
    (found,) = re.findall(rf"^{name} (.*)$", text, re.MULTILINE)
    return str(found)


@dataclass
class Composed:
    """The services of a compose file, each a process once it is started."""

    folder: Path
    services: dict[str, Any]
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def volume(self, source: str) -> Path:
        """The folder of a named volume."""
        place = self.folder / "volumes" / source
        place.mkdir(parents=True, exist_ok=True)
        return place

    def here(self, service: str, text: str) -> str:
        """A text with each mount target replaced by the folder that is mounted there, the longest target first."""
        mounts = sorted(self.services[service].get("volumes", ()), key=lambda mount: -len(mount["target"]))
        for mount in mounts:
            place = Path(mount["source"]) if mount["type"] == "bind" else self.volume(mount["source"])
            # Only where a path begins: not inside an address, nor inside the folder of another mount.
            text = re.sub(rf"(?<![\w/-]){re.escape(mount['target'])}(?![\w-])", str(place), text)
        return text

    def environment(self, service: str) -> dict[str, str]:
        """What the container would have, on this machine's paths."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DEEPSYNTH_")}
        given = self.services[service].get("environment") or {}
        own = {name: self.here(service, value) for name, value in given.items() if value is not None}
        return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **own}

    def run(self, service: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """`docker compose run SERVICE ARGUMENTS`, to its end."""
        command = entrypoint(self.services[service]["build"]["dockerfile"])
        return subprocess.run(
            [*command, *(self.here(service, each) for each in arguments)],
            cwd=ROOT, env=self.environment(service), capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip

    def start_api(self, service: str) -> int:
        """Start the API of a service on a free port of the loopback; the port."""
        dockerfile = self.services[service]["build"]["dockerfile"]
        port = free_port()
        environment = self.environment(service)
        assert (environment["DEEPSYNTH_HOST"], environment["DEEPSYNTH_PORT"]) == ("0.0.0.0", "8000")
        environment |= {"DEEPSYNTH_HOST": "127.0.0.1", "DEEPSYNTH_PORT": str(port)}
        self.start(service, [*entrypoint(dockerfile), *default_arguments(dockerfile)], port, environment)
        return port

    def start(self, service: str, command: Sequence[str], port: int, environment: dict[str, str] | None = None) -> None:
        self.ports[service] = port
        with self.log(service).open("wb") as output:
            self.processes[service] = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def is_healthy(self, service: str) -> bool:
        """Run the image's health check once."""
        command = health_check(self.services[service]["build"]["dockerfile"])
        environment = {**os.environ, "DEEPSYNTH_PORT": str(self.ports[service])}
        return subprocess.run(command, env=environment, capture_output=True, timeout=300, check=False).returncode == 0

    def log(self, service: str) -> Path:
        return self.folder / f"{service}.log"

    def stop(self) -> None:
        for process in self.processes.values():
            stop_session(process)
