import json
import random

import pytest

from benchmarks.adapters import Bench, Sent, moments_of, p99_ratio_interval, p99_ratio_of
from benchmarks.origin import keep
from benchmarks.report import NOTHING, loading_table, publishing_table
from shared.contract.volume import AdapterVolume

ORIGIN = {
    "card": "Card X",
    "clock_mhz": 1980,
    "versions": {"torch": "2.11.0", "triton": "3.6.0"},
    "commit": "c" * 40,
    "date": "2026-11-28T12:00:00+00:00",
    "command": "python benchmarks/adapter_load.py",
}
STAGES = {f"{stage}_ms": 10.0 * number for number, stage in enumerate(
    ("copy", "load", "place", "canary", "answer", "total", "worst_total"), 1)}  # fmt: skip
LOADING = {**ORIGIN, "model": "random", "rank": 16, "streams": 32, "weights_mb": 8.5, "idle": STAGES, "busy": STAGES,
           "gap_ms": 12.0, "gap_answer_ms": None, "gap_without_loads_ms": 7.0}  # fmt: skip
PUBLISHING = {
    **ORIGIN,
    "targets": {"failed": 0, "wrong": 0, "p99_ratio": 1.2, "first_answer_s": 5.0, "growth_mib": 50.0},
    "publications": 100,
    "interval_s": 2.5,
    "capacity_pages_per_s": 2.0,
    "utilisation": 0.8,
    "failed": 0,
    "wrong": 1,
    "without_publications": {"requests": 400, "p50_s": 1.0, "p99_s": 2.0},
    "with_publications": {"requests": 401, "p50_s": 1.1, "p99_s": 2.2},
    "p99_ratio": 1.1,
    "p99_ratio_interval": [1.02, 1.18],
    "first_answer_s": 1.5,
    "busy_answer_median_s": 2.5,
    "loads": 500,
    "growth_mib": 0.3,
}


def test_arrivals_come_at_the_rate_and_within_the_time():
    moments = moments_of(5.0, 200.0, random.Random(0))
    assert 850 < len(moments) < 1150
    assert all(0 <= at_s < 200 for at_s, _ in moments)
    assert moments == sorted(moments)
    assert {number for _, number in moments} == {0, 1, 2, 3}


def test_the_ratio_is_that_of_all_blocks_together():
    pairs = [([1.0] * 99, [1.0] * 99), ([2.0] * 2, [3.0] * 2)]
    assert p99_ratio_of(pairs) == 1.5


def test_the_interval_holds_the_ratio_and_narrows_with_more_blocks():
    chance = random.Random(1)

    def pair():
        return [chance.expovariate(1.0) for _ in range(50)], [1.1 * chance.expovariate(1.0) for _ in range(50)]

    few, many = [pair() for _ in range(4)], [pair() for _ in range(100)]
    widths = []
    for pairs in (few, many):
        low, high = p99_ratio_interval(pairs, random.Random(2), draws=300)
        assert low <= p99_ratio_of(pairs) <= high
        widths.append(high - low)
    assert widths[1] < widths[0]


def test_equal_blocks_leave_no_doubt():
    pairs = [([1.0, 2.0], [1.0, 2.0])] * 3
    assert p99_ratio_interval(pairs, random.Random(0), draws=50) == (1.0, 1.0)


def bench_of(tmp_path, sent):
    return Bench(None, AdapterVolume(tmp_path), [], 8, sent=sent, pages=[])


def test_latencies_are_paired_by_block(tmp_path):
    sent = [Sent(pair, live, latency, None, "live@1", 0, "a")
            for pair, live, latency in ((0, False, 1.0), (1, True, 4.0), (0, True, 2.0), (1, False, 3.0))]  # fmt: skip
    assert bench_of(tmp_path, sent).latency_pairs() == [([1.0], [2.0]), ([3.0], [4.0])]


def test_an_answer_of_another_version_than_it_names_is_wrong(tmp_path):
    sent = [
        Sent(0, True, 1.0, None, "live@1", 0, "a"),
        Sent(0, True, 1.0, None, "live@2", 0, "a"),
        Sent(0, True, 1.0, None, "unknown@1", 0, "a"),
        Sent(0, True, 1.0, "503 busy", "", 0, ""),
    ]
    bench = bench_of(tmp_path, sent)
    bench.content_of = {"live@1": 0, "live@2": 1}
    assert bench.num_wrong({(0, 0): "a", (1, 0): "b"}) == 2


def test_first_answers_are_those_of_versions_published_under_load(tmp_path):
    bench = bench_of(tmp_path, [])
    bench.published_s = {"quiet@1": 0.0, "live@1": 1.0, "live@2": 5.0, "live@3": 8.0}
    bench.answered_s = {"quiet@1": 9.0, "live@1": 2.0, "live@2": 7.5}
    assert bench.busy_answers_s() == [2.5]


def test_the_loading_table_says_what_the_newest_row_says():
    table = loading_table([{**LOADING, "rank": 16, "streams": 1}, LOADING])
    assert "| idle engine | 10.0 | 20.0 | 30.0 | 40.0 | 50.0 | 60.0 | 70.0 |" in table
    assert "| next to 32 pages |" in table
    assert "| next to 1 pages |" not in table
    assert "12 ms with loads and canaries, 7 ms with neither" in table
    assert "Card X at 1980 MHz, torch 2.11.0, triton 3.6.0, commit cccccccccc, 2026-11-28" in table


def test_the_publishing_table_says_what_the_row_says():
    table = publishing_table([{"benchmark": "adapters", "loads": 500, **ORIGIN}, PUBLISHING])
    assert "| not the text of the version named | 1 | 0 |" in table
    assert "| ratio of these | 1.10 (95 %: 1.02 to 1.18) | 1.2 |" in table
    assert "| memory after 500 loads | +0.3 MiB | 50.0 MiB |" in table
    assert "100 publications, one every 2.5 s, at 80% of 2.00 pages/s." in table


@pytest.mark.parametrize("table", [loading_table, publishing_table])
def test_without_rows_a_table_says_so(table):
    assert table([]) == NOTHING


def test_a_row_is_kept_where_it_is_asked_to_be(tmp_path, capsys):
    keep({"benchmark": "x", "card": "y"}, None)
    for _ in range(2):
        keep({"benchmark": "x", "card": "y"}, str(tmp_path / "rows.jsonl"))
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"benchmark": "x", "card": "y"}] * 2
    assert capsys.readouterr().out.count("\n") == 3
