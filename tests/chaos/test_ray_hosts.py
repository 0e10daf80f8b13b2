"""Bulk reading on two hosts of which one is cut off and comes back, and through kills: nothing lost, nothing twice.

Hosts are network namespaces on a switch, each a Ray node with an address of its own; needs root and Ray.

python -m pytest tests/chaos/test_ray_hosts.py -m "" --long        10,000 pages for the kills
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.bulk import FAKE, QUICKLY, finished, make_pages, page_rows, read_here, table_rows
from tests.support.network import switched_hosts
from tests.support.ray_cluster import Cluster, head_node, ray_cluster

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

PAGES = 400
LOST = "a worker was lost"
IMPATIENT = {"RAY_health_check_timeout_ms": "2000", "RAY_health_check_period_ms": "1000"}
"""Ray gives a node up after about 15 s instead of a minute."""


class Command:
    """`deepsynth bulk --on ray` on a cluster, as often as it is needed."""

    def __init__(self, cluster: Cluster, folder: Path, workers: int, step_ms: int) -> None:
        self.source, self.out, self.log = folder / "in", folder / "out", folder / "log"
        self._command = [cluster.programs / "python", "-m", "service", "bulk", self.source, self.out, *QUICKLY]
        self._command += [
            "--on",
            "ray",
            "--workers",
            str(workers),
            "--jobs",
            str(4 * workers),
            "--rows-per-file",
            "100",
        ]
        self._environment = cluster.environment(**FAKE, FAKE_STEP_MS=str(step_ms))
        self._folder = folder

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        with self.log.open("ab") as stream:
            process = subprocess.Popen(self._command, env=self._environment, cwd=self._folder, stderr=stream)
            try:
                yield process
            finally:
                process.kill()
                process.wait()

    def wait_for(self, process: subprocess.Popen[bytes], documents: int, limit_s: float = 600) -> None:
        end_s = time.monotonic() + limit_s
        while finished(self.out) < documents:
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < end_s, self.log.read_text()
            time.sleep(0.1)


def test_a_host_that_is_cut_off_and_comes_back_loses_no_page(tmp_path: Path, figures: Callable[..., None]) -> None:
    make_pages(tmp_path / "in", PAGES)
    with switched_hosts(2) as (here, hosts), head_node(here, num_cpus=0, **IMPATIENT) as cluster:

        def join(host):
            # Room for one worker.
            words = [f"--address={cluster.address}", "--num-cpus=1"]
            return cluster.add_node(*words, address=host.address, prefix=host.prefix)

        nodes = [join(host) for host in hosts]
        command = Command(cluster, tmp_path, workers=2, step_ms=150)
        with command.running() as process:
            command.wait_for(process, 20)
            # Shorter than it takes to be given up: its documents are late.
            hosts[1].plug(is_in=False)
            time.sleep(2)
            hosts[1].plug(is_in=True)
            command.wait_for(process, 50)
            hosts[1].plug(is_in=False)
            cut_s = time.monotonic()
            while LOST not in command.log.read_text():
                assert process.poll() is None, command.log.read_text()
                time.sleep(0.1)
            # The other host reads on alone, also what this one had.
            command.wait_for(process, finished(command.out) + 20)
            cut_s = time.monotonic() - cut_s
            hosts[1].plug(is_in=True)
            # The node, which Ray has given up, ends itself; what keeps services running would start it again.
            nodes[1].process.wait(timeout=120)
            back = join(hosts[1])
            while not back.workers("ray::BulkWorker"):
                assert process.poll() is None, command.log.read_text()
                time.sleep(0.1)
            assert process.wait(timeout=600) == 1, command.log.read_text()  # of the broken documents
    read_here(tmp_path / "in", tmp_path / "here")
    for table in ("pages", "failures"):
        assert page_rows(tmp_path / "out", table) == page_rows(tmp_path / "here", table)
    figures(pages=PAGES, cut_off_for_s=cut_s)


def test_kills_of_workers_and_of_the_command_lose_nothing(
    tmp_path: Path, length: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    count = length(300, 10_000)
    make_pages(tmp_path / "in", count)
    began_s = time.monotonic()
    with ray_cluster() as cluster:
        command = Command(cluster, tmp_path, workers=2, step_ms=5)
        for share in (0.2, 0.5):
            with command.running() as process:
                command.wait_for(process, int(share * count), 3000)
                os.kill(cluster.nodes[0].workers("ray::BulkWorker")[0], signal.SIGKILL)
                command.wait_for(process, int((share + 0.2) * count), 3000)
        with command.running() as process:
            assert process.wait(timeout=3000) == 1, command.log.read_text()
    seen = Counter((row["source"], row["page"]) for row in table_rows(tmp_path / "out", "pages"))
    assert len(seen) == count + 3 + 2 + 3
    assert set(seen.values()) == {1}
    figures(pages=len(seen), seconds=time.monotonic() - began_s)
