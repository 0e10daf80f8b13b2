"""A Ray cluster of this machine's own, on loopback, of processes that end with the test.

Ray lives in an environment of its own (`deploy/env/ray.txt`); the tests run its programs and import nothing of it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.network import own_network
from tests.support.programs import ROOT, absent, free_port
from tests.support.server import environment

PLACES = (ROOT / ".venv-ray" / "bin", ROOT / ".venv" / "bin")
HOST = "127.0.0.2"
"""On loopback; Ray would replace 127.0.0.1 by the address of another interface."""
STARTED, TOO_SLOW = "Ray runtime started", "timed out during startup"
TRIES = 2
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "OMP_NUM_THREADS": "1",
    # What a node waits for on a busy machine: its head, and its agents.
    "RAY_gcs_server_port_wait_time_s": "300",
    "RAY_agent_register_timeout_ms": "300000",
    # Ray listens on every interface; who has no token is not heard.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


def ray_programs() -> Path:
    """Folder with `ray`, `serve` and a Python that has the service's packages and Ray's; skips the test without one."""
    named = os.environ.get("RAY_PROGRAMS")
    places = [Path(named)] if named else PLACES
    for place in places:
        if (place / "serve").exists():
            return place
    absent("Ray is not installed: make ray-env")


@dataclass
class Node:
    """One node: what `ray start --block` runs, in a session of its own."""

    process: subprocess.Popen[bytes]

    def workers(self, title: str) -> list[int]:
        """Process ids of this session's Ray workers with so a title, such as `ray::ServeReplica`."""
        return sorted(pid for pid, line in session(self.process.pid).items() if line.startswith(title))


def session(leader: int) -> dict[int, str]:
    """Command lines of the processes below a process, by their ids."""
    parents: dict[int, int] = {}
    lines: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            pid = int(folder.name)
            parents[pid] = int(stat[1])
            lines[pid] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    found, more = set(), {leader}
    while more:
        found |= more
        more = {pid for pid, parent in parents.items() if parent in more} - found
    return {pid: lines[pid] for pid in found if pid in lines}


@dataclass
class Cluster:
    """A head node, perhaps others, and what runs on them."""

    programs: Path
    address: str
    folder: Path
    more: Mapping[str, str]
    """Further variables of its processes."""
    nodes: list[Node] = field(default_factory=list)
    _seen: dict[int, str] = field(default_factory=dict)

    def environment(self, **settings: str) -> dict[str, str]:
        """Of a command that uses this cluster."""
        # No proxy: Serve and Ray talk to loopback alone.
        return {**environment(**settings), **QUIET, "RAY_ADDRESS": self.address, **self.more}

    def add_node(self, *arguments: str, address: str = HOST, prefix: Sequence[str] = ()) -> Node:
        """Start a node and wait until its processes are there."""
        for attempt in range(1, TRIES + 1):
            log = self.folder / f"node{len(self.nodes)}.log"
            with log.open("wb") as stream:
                process = subprocess.Popen(
                    [
                        *prefix,
                        self.programs / "python",
                        "-m",
                        "tests.support.ray_start",
                        "start",
                        "--block",
                        *_own(address),
                        *arguments,
                    ],
                    cwd=self.folder,
                    env=self.environment(),
                    stdout=stream,
                    stderr=stream,
                    start_new_session=True,
                )
            self.nodes.append(node := Node(process))
            while process.poll() is None:
                if STARTED in log.read_text(errors="replace"):
                    return node
                self._seen |= session(process.pid)
                time.sleep(0.3)
            # What a busy machine had no time for may be there the second time.
            self._end(node)
            assert attempt < TRIES, log.read_text(errors="replace")
            assert TOO_SLOW in log.read_text(errors="replace"), log.read_text(errors="replace")
            self.nodes.remove(node)
        raise AssertionError("not reached")

    def stop(self) -> None:
        """End all of it, children of children included."""
        for node in reversed(self.nodes):
            self._end(node)

    def _end(self, node: Node) -> None:
        self._seen |= session(node.process.pid)
        node.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            node.process.wait(timeout=60)
        # A raylet that has been stopped ends its workers; one that is stuck does not.
        end_s = time.monotonic() + 60
        while (left := self.left()) and time.monotonic() < end_s:
            time.sleep(0.1)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.process.wait(timeout=60)

    def left(self) -> list[int]:
        """Processes of stopped nodes that still run."""
        found = []
        for pid, line in self._seen.items():
            with contextlib.suppress(OSError):
                folder = Path(f"/proc/{pid}")
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                # An id may belong to another process by now.
                if state != "Z" and (folder / "cmdline").read_bytes().startswith(line.split(" ")[0].encode()):
                    found.append(pid)
        return found


def _own(address: str) -> list[str]:
    """Options of a node for its address, ports and silence."""
    # Where ports are named, `ray_start` need not wait for agents that say which they have found.
    names = ("dashboard-agent-grpc", "dashboard-agent-listen", "runtime-env-agent", "metrics-export")
    ports = [f"--{name}-port={free_port(is_held=False)}" for name in names]
    free = ["--min-worker-port=0", "--max-worker-port=0", "--include-log-monitor=false", "--disable-usage-stats"]
    return [f"--node-ip-address={address}", "--object-store-memory=200000000", *free, *ports]


@contextlib.contextmanager
def head_node(address: str, num_cpus: int, **more: str) -> Iterator[Cluster]:
    """A head node without a dashboard; it ends, with all nodes that were added, after the block."""
    programs = ray_programs()
    # Ray makes sockets below this folder, whose names must be short.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        port = free_port(is_held=False)
        cluster = Cluster(programs, f"{address}:{port}", Path(folder), more)
        try:
            cluster.add_node(
                "--head", f"--port={port}", f"--num-cpus={num_cpus}", "--include-dashboard=false", "--no-monitor",
                f"--temp-dir={folder}/t", f"--ray-client-server-port={free_port(is_held=False)}", address=address,
            )  # fmt: skip
            yield cluster
        finally:
            cluster.stop()


@contextlib.contextmanager
def ray_cluster(num_cpus: int = 8) -> Iterator[Cluster]:
    """One node in a network of its own, which the calling thread is in as well."""
    with own_network(), head_node(HOST, num_cpus) as cluster:
        yield cluster
