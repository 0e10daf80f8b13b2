import io
import json
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import online
from benchmarks.online import (
    Load,
    Sent,
    load_from,
    pages_of,
    percentile,
    run_load,
    send,
    shares_of,
    spread_ms,
    summarise,
)
from shared.images.ink import find_ink
from tests.support.service import running_service


def test_percentiles_are_nearest_ranks():
    values = [float(number) for number in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50.0, 90.0, 99.0, 100.0]
    assert percentile([3.0], 0.5) == 3.0
    assert spread_ms([0.001, 0.003]) == {"mean": 2.0, "p50": 1.0, "p90": 3.0, "p95": 3.0, "p99": 3.0, "max": 3.0}
    assert spread_ms([float("nan")]) is None


def test_goodput_counts_requests_within_both_limits():
    def answered(ttft_s: float, total_s: float) -> Sent:
        stages = dict.fromkeys(("queue", "encode", "prefill", "generate"), 1.0)
        return Sent(0.0, None, ttft_s, total_s, total_s, tokens=11, pages=1, timings_ms=stages)

    sent = [answered(0.1, 1.1), answered(0.5, 1.1), answered(0.1, 3.0), Sent(0.0, error="queue_full")]
    row = summarise(sent, 2.0, slo_ttft_ms=200, slo_e2e_ms=2000)
    assert (row["goodput_share"], row["goodput_requests_per_s"]) == (0.25, 0.5)
    assert (row["requests_per_s"], row["tokens_per_s"], row["errors"]) == (1.5, 16.5, {"queue_full": 1})
    assert row["tpot_ms"]["p50"] == pytest.approx(100.0)


@pytest.mark.parametrize("way", [{"clients": 4}, {"rate": 400.0}])
async def test_every_request_is_answered_and_timed(way: dict[str, float]):
    async with running_service() as service:
        sent, wall_s = await run_load(service.client, Load(pages_of(Path(), (64, 64), 0), requests=12, **way))
    row = summarise(sent, wall_s)
    assert (row["requests"], row["errors"], row["goodput_share"]) == (12, {}, 1.0)
    assert all(0 < each.ttft_s <= each.total_s and each.tokens > 1 and each.pages == 1 for each in sent)


async def test_errors_are_counted_by_code():
    pages = pages_of(Path(), (64, 64), 0)
    async with running_service(max_concurrent_requests=1) as service:
        sent, wall_s = await run_load(service.client, Load(pages, clients=6, requests=6))
        unknown = await send(service.client, Load(pages, model_ids=["nothing"]), 0, time.perf_counter())
    errors = summarise(sent, wall_s)["errors"]
    assert sum(errors.values()) > 0
    assert set(errors) <= {"queue_full", "overloaded"}
    assert unknown.error == "model_not_found"


def test_a_load_is_shared_out_whole():
    load = Load([b"0", b"1", b"2"], clients=7, requests=8, seed=5)
    shares = shares_of(load, 3)
    assert [each.clients for each in shares] == [3, 2, 2]
    assert [each.requests for each in shares] == [3, 3, 2]
    assert len({each.seed for each in shares}) == 3
    assert [each.pages[0] for each in shares] == [b"0", b"1", b"2"]
    open_loop = shares_of(Load([b""], rate=30.0, duration_s=2.0), 3)
    assert [(each.rate, each.clients, each.requests, each.duration_s) for each in open_loop] == 3 * [(10.0, 1, None, 2)]


def test_several_processes_load_one_service_and_make_one_row(monkeypatch, capsys):
    words = ["--model", "fake", "--processes", "2", "--clients", "1", "4", "--requests", "12", "--side", "64", "--text"]
    monkeypatch.setattr(sys, "argv", [online.__file__, *words])
    online.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [(row["clients"], row["processes"], row["requests"], row["errors"]) for row in rows] == [
        (1, 1, 12, {}),
        (4, 2, 12, {}),
    ]
    assert all(row["text"] and row["client_cpu_share"] > 0 for row in rows)


def test_a_client_process_that_fails_ends_the_run():
    with pytest.raises(RuntimeError, match="a client process failed"):
        load_from("http://127.0.0.1:1", Load([], clients=2, requests=2), 2)


def test_pages_of_text_have_print_and_differ():
    pages = pages_of(Path(), (320, 240), 0, text=True)
    assert len(set(pages)) == len(pages) == 16
    image = Image.open(io.BytesIO(pages[3]))
    assert image.size == (320, 240)
    assert len(find_ink(image).lines) > 10
