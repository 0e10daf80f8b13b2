"""The whole loop: a service reads a domain badly, an adapter is trained, the same service reads it well.

    python benchmarks/demo_loop.py                     make demo-loop
    python benchmarks/demo_loop.py --keep DIR          keep pages, run and volume there

Starts the service with nano on a CPU over an empty adapter volume and reads the test pages of a small domain through
its API. Then it prepares, trains, measures and publishes with the trainer's own commands, which it prints; waits until
the running service answers with the new adapter; and reads the same pages again. Nothing is restarted. The domain and
the settings are those of `python -m trainer smoke`. Prints a summary and, last, a JSON line; the exit status is 1 if
the error rate did not fall.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

START_TIMEOUT_S = 120.0
SERVED_TIMEOUT_S = 60.0
PAUSE_S = 0.1


class DemoError(RuntimeError):
    """A step failed; the message says which."""


@dataclass(frozen=True, slots=True)
class Loop:
    """Commands of the loop, as words after `python -m trainer`."""

    name: str
    """The adapter's."""
    pages: Path
    """The set that is read."""
    before: Sequence[Sequence[str]]
    """Makes the pages."""
    after: Sequence[Sequence[str]]
    """Trains, measures and publishes."""
    part: Sequence[str] = ("--split", "test")
    """Which of its pages."""
    max_new_tokens: int = 128


def smoke_loop(out: Path) -> Loop:
    """The domain and the settings of `python -m trainer smoke`; its files go below `out`."""
    # Here, because the rest needs nothing of the trainer.
    smoke = importlib.import_module("trainer.commands.smoke")
    smoke.write_texts(out / smoke.TEXTS_FILE, smoke.NUM_TEXTS, seed=0)
    commands = smoke.smoke_commands(out, [])
    return Loop("comb", out / "set", before=commands[:1], after=commands[1:])


@dataclass(frozen=True, slots=True)
class Running:
    """A service as a process."""

    url: str
    pid: int


def say(text: str) -> None:
    """A headline."""
    sys.stderr.write(f"\n== {text}\n")
    sys.stderr.flush()


@contextlib.contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program, and end it with the block if it has not ended by then.

    Interrupts are held until it is known: one that comes while it is being started reaches neither the program nor the
    code that would end it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process = subprocess.Popen(command, preexec_fn=_take_interrupts, **options)  # noqa: PLW1509 -- it only sets signals
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            yield process
        finally:
            process.terminate()
            process.wait(timeout=60)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _take_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def trainer(words: Sequence[str]) -> None:
    """Run one of the trainer's commands, shown as it would be typed."""
    sys.stderr.write(f"$ python -m trainer {shlex.join(words)}\n")
    sys.stderr.flush()
    # Its table belongs to the terminal; standard output is for the JSON line.
    with started([sys.executable, "-m", "trainer", *words], cwd=ROOT, stdout=sys.stderr) as process:
        status = process.wait()
    if status:
        raise DemoError(f"`trainer {words[0]}` ended with status {status}; it said why above")


@contextlib.contextmanager
def service(volume: Path, log: Path, **settings: str) -> Iterator[Running]:
    """Run the service over a volume until the block ends.

    Args:
        volume: Where adapters will be published.
        log: Gets the service's output.
        **settings: More settings, without their prefix.

    Yields:
        The service, ready.

    Raises:
        DemoError: It did not become ready.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    chosen = {"DEVICE": "cpu", "PORT": str(port), "ADAPTER_DIR": str(volume), **settings}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DEEPSYNTH_")}  # noqa: TID251
    environment = inherited | {f"DEEPSYNTH_{name}": value for name, value in chosen.items()}
    environment["PYTHONPATH"] = str(ROOT)
    with log.open("wb") as stream, tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "service", "serve"]
        with started(command, cwd=folder, env=environment, stdout=stream, stderr=stream) as process:
            _wait_ready(process, f"http://127.0.0.1:{port}", log)
            yield Running(f"http://127.0.0.1:{port}", process.pid)


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    ends_s = time.monotonic() + START_TIMEOUT_S
    while _get(f"{url}/readyz") is None:
        if process.poll() is not None or time.monotonic() > ends_s:
            raise DemoError(f"the service did not start; {log} says why:\n{log.read_text()[-2000:]}")
        time.sleep(PAUSE_S)


def _get(url: str) -> Any:
    """JSON of an answer; None where there is none, or an error."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 -- our own service
            return json.load(response)
    except (OSError, urllib.error.URLError, ValueError):
        return None


def served_cer(url: str, loop: Loop, model_id: str | None, record: Path) -> float:
    """Read the loop's pages through the service; character errors of all pages over their characters."""
    words = ["evaluate", "--data", str(loop.pages), *loop.part, "--url", url, "--json", str(record)]
    words += ["--max-new-tokens", str(loop.max_new_tokens)] + (["--model-id", model_id] if model_id else [])
    trainer(words)
    tiers = json.loads(record.read_text())["readers"][0]["tiers"].values()
    return sum(tier["cer"] * tier["characters"] for tier in tiers) / sum(tier["characters"] for tier in tiers)


def wait_served(url: str, name: str) -> str:
    """Wait until the service serves a version of a name; `name@version`.

    Raises:
        DemoError: It does not within `SERVED_TIMEOUT_S`, or refuses the adapter.
    """
    ends_s = time.monotonic() + SERVED_TIMEOUT_S
    while time.monotonic() < ends_s:
        listed = (_get(f"{url}/adapters") or {"adapters": []})["adapters"]
        found = next((adapter for adapter in listed if adapter["name"] == name), None)
        if found and found["serving"]:
            return str(found["serving"])
        reasons = [version["reason"] for version in found["versions"] if version["reason"]] if found else []
        if reasons:
            raise DemoError(f"the service refused {name}: {', '.join(reasons)}")
        time.sleep(PAUSE_S)
    raise DemoError(f"the service does not serve {name} after {SERVED_TIMEOUT_S:.0f} s")


def run(out: Path, loop: Loop, **settings: str) -> dict[str, Any]:
    """Run the loop once below `out`, where `volume` exists; error rates and times."""
    began_s = time.monotonic()
    say("1/5  start the service; its adapter volume is empty")
    with service(out / "volume", out / "service.log", **settings) as running:
        url = running.url
        sys.stderr.write(f"ready at {url}\n")
        say("2/5  the domain's pages, read by the base model through the service")
        for words in loop.before:
            trainer(words)
        before = served_cer(url, loop, None, out / "served-base.json")
        say("3/5  train an adapter and publish it; the service keeps serving")
        for words in loop.after:
            trainer(words)
        published_s = time.monotonic()
        say("4/5  wait until the running service answers with it")
        model_id = wait_served(url, loop.name)
        wait_s = time.monotonic() - published_s
        sys.stderr.write(f"{model_id} is in service {wait_s:.1f} s after the publishing command had ended\n")
        say("5/5  the same pages, read through the same service")
        after = served_cer(url, loop, loop.name, out / "served-adapter.json")
    seconds = time.monotonic() - began_s
    say(f"served CER: {before:.1%} by the base, {after:.1%} by {model_id}; {seconds:.0f} s in all")
    return {
        "benchmark": "demo_loop",
        "base_cer": round(before, 4),
        "adapter_cer": round(after, 4),
        "model_id": model_id,
        "published_to_served_s": round(wait_s, 2),
        "total_s": round(seconds, 1),
    }


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new folder for all that is made")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        out = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            (out / "volume").mkdir(parents=True)
            result = run(out.resolve(), smoke_loop(out.resolve()))
        except FileExistsError:
            parser.error(f"{out} has a volume already; name another folder")
        except DemoError as error:
            sys.stderr.write(f"error: {error}\n")
            return 1
        except KeyboardInterrupt:
            kept = f"what was made is in {out}" if arguments.keep else "nothing is kept without --keep"
            sys.stderr.write(f"\ninterrupted; {kept}\n")
            return 130
    print(json.dumps(result))
    return 0 if result["adapter_cer"] < result["base_cer"] else 1


if __name__ == "__main__":
    sys.exit(main())
