"""Ray: the service with replicas, and bulk reading with workers, on a real cluster of this machine, with kills.

The fake engine reads. Two hosts, and 10,000 pages, are in `tests/chaos/test_ray_hosts.py`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import yaml

from shared.contract.publication import publish
from shared.contract.volume import AdapterVolume
from tests.support.adapters import announcement, write_peft
from tests.support.bulk import FAKE, QUICKLY, finished, make_pages, page_rows, read_here
from tests.support.live_adapters import FAKE_BASE
from tests.support.load import QUICK, numbered_page
from tests.support.programs import ROOT, free_port
from tests.support.ray_cluster import Cluster, ray_cluster, ray_programs
from tests.support.server import environment

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

CONFIG = ROOT / "deploy" / "ray" / "serve.yaml"
MODEL_HEADER = "serve-multiplexed-model-id"
REPLICAS = 3
CLIENTS = 9
ANSWER_LIMIT_S = 240.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_cluster() as running:
        yield running
    # Nothing of it outlives the test.
    assert running.left() == []


class Served:
    """The application of `deploy/ray/serve.yaml` on the cluster, with the fake engine."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.volume = AdapterVolume(folder / "volume")
        (folder / "volume").mkdir()
        self._trained = folder / "trained"
        self.cluster = cluster
        port = free_port(is_held=False)
        self.url = f"http://127.0.0.1:{port}"
        config = yaml.safe_load(CONFIG.read_text())
        config["http_options"]["port"] = port
        (application,) = config["applications"]
        application["runtime_env"]["env_vars"] = {
            "DEEPSYNTH_ENGINE": "fake", "DEEPSYNTH_FAKE_STEP_MS": "20", "DEEPSYNTH_IMAGE_WORKERS": "1",
            "DEEPSYNTH_ADAPTER_DIR": str(folder / "volume"), "DEEPSYNTH_ADAPTER_SLOTS": "1",
        }  # fmt: skip
        (deployment,) = application["deployments"]
        deployment["ray_actor_options"] = {"num_cpus": 1}
        deployment["autoscaling_config"] |= {
            "max_replicas": REPLICAS, "target_ongoing_requests": 1, "upscale_delay_s": 0, "metrics_interval_s": 0.2,
            "look_back_period_s": 0.5,
        }  # fmt: skip
        deployment["graceful_shutdown_timeout_s"] = 5
        place = folder / "serve.yaml"
        place.write_text(yaml.safe_dump(config))
        self.log = folder / "serve.log"
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [cluster.programs / "serve", "run", str(place), "--address", cluster.address],
                cwd=folder, env=cluster.environment(), stdout=stream, stderr=stream, start_new_session=True,
            )  # fmt: skip

    def publish(self, name: str) -> None:
        source = write_peft(self._trained / name, seed=len(name))
        publish(self.volume, source, announcement(name, base=FAKE_BASE), activate=True)

    def wait(self) -> None:
        end_s = time.monotonic() + 900
        while True:
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-4000:]
            assert time.monotonic() < end_s, self.log.read_text(errors="replace")[-4000:]
            try:
                if httpx.get(f"{self.url}/readyz", timeout=30).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)

    def stop(self) -> None:
        # Its replicas end with the cluster.
        self.process.kill()
        self.process.wait(timeout=120)


@pytest.fixture(scope="module")
def served(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(cluster, tmp_path_factory.mktemp("served"))
    try:
        served.wait()
        yield served
    finally:
        served.stop()


class Answers:
    """What clients got, retries included."""

    def __init__(self, url: str) -> None:
        self.client = httpx.AsyncClient(base_url=url, timeout=120)
        self.replicas: Counter[str] = Counter()
        self.texts: dict[int, str] = {}
        self.num_asked = 0
        self.lost: list[int] = []
        self.num_retried = 0

    async def ask(
        self, number: int, model_id: str | None = None, *, routed: bool = False
    ) -> tuple[str, dict[str, Any]]:
        """Send a page until it is read; a replica that died, or is full, has not read it."""
        self.num_asked += 1
        headers = {MODEL_HEADER: model_id} if routed and model_id else {}
        fields = QUICK | ({} if model_id is None else {"model_id": model_id})
        end_s = time.monotonic() + ANSWER_LIMIT_S
        while time.monotonic() < end_s:
            try:
                response = await self.client.post(
                    "/ocr", files={"file": ("page.png", numbered_page(number))}, data=fields, headers=headers
                )
            except httpx.TransportError:
                response = None
            if response is not None and response.status_code == 200:
                replica = response.headers["x-served-by"]
                self.replicas[replica] += 1
                self.texts[number] = response.json()["text"]
                return replica, response.json()
            self.num_retried += 1
            await asyncio.sleep(0.3)
        self.lost.append(number)
        return "", {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()

    async def load(self, stop: asyncio.Event, first: int) -> None:
        async def client(start: int) -> None:
            for number in range(start, 2**31, CLIENTS):
                if stop.is_set():
                    return
                await self.ask(number)

        await asyncio.gather(*(client(first + each) for each in range(CLIENTS)))


async def wait_for(condition: Any, seconds: float = 600.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.1)


async def test_replicas_grow_with_the_load_and_a_killed_one_loses_no_request(served: Served) -> None:
    async with Answers(served.url) as answers:
        stop = asyncio.Event()
        loading = asyncio.create_task(answers.load(stop, 0))
        await wait_for(lambda: len(answers.replicas) == REPLICAS)
        before = set(answers.replicas)
        pids = served.cluster.nodes[0].workers("ray::ServeReplica")
        assert len(pids) == REPLICAS
        os.kill(pids[0], signal.SIGKILL)
        # Serve makes another in its place.
        await wait_for(lambda: len(set(answers.replicas) - before) == 1)
        stop.set()
        await loading
        assert answers.lost == []
        assert len(answers.texts) == answers.num_asked
        alone = [(await answers.ask(number))[1]["text"] for number in range(5)]
        assert alone == [answers.texts[number] for number in range(5)]


async def test_a_published_adapter_is_live_on_every_replica_and_its_requests_go_where_it_is(served: Served) -> None:
    async with Answers(served.url) as answers:

        async def live_on(name: str) -> set[str]:
            # Enough at once to reach all replicas, which the load of the test before has made.
            found = await asyncio.gather(*(answers.ask(number, name) for number in range(3 * CLIENTS)))
            return {replica for replica, body in found if body and body["model_id"] == f"{name}@1"}

        for name in ("invoices", "letters"):
            served.publish(name)
            async with asyncio.timeout(600):
                while len(await live_on(name)) < REPLICAS:
                    await asyncio.sleep(0.2)
            answers.lost.clear()  # before it was there
        # One slot a replica: all hold `letters` now. Where `invoices` is loaded again, its requests go from then on, as
        # soon as Serve has told its proxies. By chance, the same replica gets eight requests in one of 2,000 rounds.
        for pause_s in (2, 4, 8, 16, 32):
            holder, _ = await answers.ask(1, "invoices", routed=True)
            await asyncio.sleep(pause_s)
            routed = {(await answers.ask(number, "invoices", routed=True))[0] for number in range(8)}
            others = {(await answers.ask(number, "letters", routed=True))[0] for number in range(8)}
            if routed == {holder} and holder not in others:
                return
            while len(await live_on("letters")) < REPLICAS:
                await asyncio.sleep(0.2)
        raise AssertionError(f"{holder} holds invoices: {routed} were asked for it, {others} for letters")


def test_workers_read_the_same_as_one_process_through_kills_of_worker_and_command(
    cluster: Cluster, tmp_path: Path
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    make_pages(source, 120)
    command = [cluster.programs / "python", "-m", "service", "bulk", str(source), str(out), *QUICKLY]
    command += ["--on", "ray", "--workers", "2", "--jobs", "4", "--rows-per-file", "10"]
    given = cluster.environment(**FAKE, FAKE_STEP_MS="20")
    log = tmp_path / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=given, cwd=tmp_path, stderr=stream)
        # All workers, as one may still be starting when the other one has read these pages. Ray takes its time to tell.
        for least, said, kill in ((8, "", "workers"), (30, "a worker was lost", "command")):
            end_s = time.monotonic() + 600
            while finished(out) < least or said not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end_s, log.read_text()
                time.sleep(0.02)
            if kill == "workers":
                for worker in cluster.nodes[0].workers("ray::BulkWorker"):
                    os.kill(worker, signal.SIGKILL)
            else:
                process.kill()
                process.wait()
    kept = finished(out)
    done = subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1, done.stderr  # of the broken ones
    assert f"{kept} before." in done.stderr
    read_here(source, tmp_path / "here")
    for table in ("pages", "failures"):
        assert page_rows(out, table) == page_rows(tmp_path / "here", table)
        assert page_rows(out, table)


def test_without_a_cluster_one_line_says_how_to_start_one(tmp_path: Path) -> None:
    make_pages(tmp_path / "in", 1)
    # Ray itself looks for a cluster for a minute before it says so.
    program = (
        "import ray, sys\n"
        "def init(**_): raise ConnectionError('none')\n"
        "ray.init = init\n"
        "from service.__main__ import main\n"
        "sys.exit(main(['bulk', 'in', 'out', '--on', 'ray']))"
    )
    command = [ray_programs() / "python", "-c", program]
    given = environment(**FAKE)
    done = subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 69
    assert "(none); start one: ray start --head" in done.stderr.splitlines()[-1]
