"""Replicas of the service on the cards of one host: what a second card gives, through HTTP.

    python benchmarks/replicas.py --model random --cards 2 --clients 256 --duration 30 --side 640 --text \
        --max-new-tokens 512 --field temperature=1 --field stream=false --setting OCR_BATCH_SIZE=256 \
        --setting MAX_CONCURRENT_REQUESTS=512 --out auto
    python benchmarks/replicas.py --model fake --device cpu --cards 2 --clients 8 --duration 5 --side 64

Starts a service for each card, which sees that card alone, or with `--per-card` several that share its memory. Loads
first one service, then all at once, each from client processes of its own. No gateway is between: how requests are
shared out is not measured. Where `client_cpu_share` is near 1, the clients are what limits, and the gain says nothing
about cards. Pages are noise, or with `--text` rows of text, as with `online.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.demo_loop import service
from benchmarks.online import NANO, Load, load_from, measures_of, pages_of, size_of
from benchmarks.origin import card_name, command, keep, origin
from service.config import ServiceSettings

WHOLE = ServiceSettings.model_fields["gpu_memory_fraction"].default
"""Of a card's memory, that its services have together."""


@contextlib.contextmanager
def one_card(number: int | None) -> Iterator[None]:
    """Let processes that are started in the block see one card; all where `number` is None."""
    environment = os.environ  # noqa: TID251 -- what CUDA and the started process read
    before = environment.get("CUDA_VISIBLE_DEVICES")
    if number is not None:
        environment["CUDA_VISIBLE_DEVICES"] = card_name(number)
    try:
        yield
    finally:
        if before is None:
            environment.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            environment["CUDA_VISIBLE_DEVICES"] = before


@contextlib.contextmanager
def services(cards: int, per_card: int, model: str, device: str, settings: Mapping[str, str]) -> Iterator[list[str]]:
    """Addresses of so many services on each card; where `device` is cuda, a service sees its card alone."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder = Path(scratch)
        if model == "random":
            from benchmarks.random_model import write_random_checkpoint

            model = str(write_random_checkpoint(folder / "deepseek-ocr-random", NANO, device))
        chosen = {"ENGINE": "fake"} if model == "fake" else {"MODEL": model, "DEVICE": device}
        urls = []
        for number in range(cards * per_card):
            (volume := folder / f"volume{number}").mkdir()
            # A share counts what is used already: the services on a card start one after another.
            share = {"GPU_MEMORY_FRACTION": str(WHOLE * (number % per_card + 1) / per_card)}
            with one_card(number // per_card if device == "cuda" else None):
                given = {**chosen, **share, **settings}
                running = stack.enter_context(service(volume, folder / f"{number}.log", **given))
            urls.append(running.url)
        yield urls


def drive(url: str, load: Load, processes: int) -> dict[str, Any]:
    """Load one service."""
    return measures_of(load_from(url, load, processes), math.inf, math.inf)


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="nano, fake, random (v1 weights) or a checkpoint's folder")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--cards", type=int, default=2, help="cards that have services (%(default)s)")
    parser.add_argument("--per-card", type=int, default=1, help="services on each card (%(default)s)")
    parser.add_argument("--clients", type=int, default=256, help="of each service")
    parser.add_argument("--processes", type=int, default=4, help="client processes of each service (%(default)s)")
    parser.add_argument("--duration", type=float, default=30.0, help="seconds in which requests are sent")
    parser.add_argument("--side", type=size_of, default=(640, 640), metavar="PX|WxH", help="noise of that size")
    parser.add_argument("--text", action="store_true", help="text of that size instead")
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="of the services")
    parser.add_argument("--field", action="append", default=[], metavar="NAME=VALUE", help="form field of each request")
    parser.add_argument("--out", help="file that the line is appended to, or `auto`")
    given = parser.parse_args()
    load = Load(
        pages_of(Path(), given.side, 0, text=given.text),
        max_new_tokens=given.max_new_tokens,
        clients=given.clients,
        duration_s=given.duration,
        fields={"blank_pages": "read", **dict(each.split("=", 1) for each in given.field)},
    )
    settings = dict(each.split("=", 1) for each in given.setting)
    rows = []
    facts = {
        name: getattr(given, name) for name in ("cards", "per_card", "clients", "processes", "max_new_tokens", "text")
    }
    facts |= {"model": Path(given.model).name, "side_px": list(given.side)}
    num_services = given.cards * given.per_card
    with (
        services(given.cards, given.per_card, given.model, given.device, settings) as urls,
        ThreadPoolExecutor(num_services) as threads,
    ):
        for count in (1, num_services):
            seen = list(threads.map(partial(drive, load=load, processes=given.processes), urls[:count]))
            rows.append(
                {
                    "services": count,
                    "pages_per_s": round(sum(each["pages_per_s"] for each in seen), 2),
                    "each_pages_per_s": [each["pages_per_s"] for each in seen],
                    "p50_ms": [each["e2e_ms"]["p50"] for each in seen],
                    "p99_ms": [each["e2e_ms"]["p99"] for each in seen],
                    "errors": [each["errors"] for each in seen],
                    "client_cpu_share": [each["client_cpu_share"] for each in seen],
                }
            )
            print(rows[-1], flush=True)
        gain = rows[-1]["pages_per_s"] / rows[0]["pages_per_s"] if rows[0]["pages_per_s"] else math.nan
        facts |= {"times_one": round(gain, 3), "rows": rows}
        # Before the services stop, which takes its time after a load.
        keep({"benchmark": "replicas", "command": command(), **origin(given.device), **facts}, given.out)


if __name__ == "__main__":
    main()
