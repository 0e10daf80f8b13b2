import json
from xml.etree import ElementTree

import pytest

from benchmarks.report import MARKED, PAGE, PICTURE, newest, render
from benchmarks.svg import Line, Panel, draw

ORIGIN = {
    "card": "Card X",
    "clock_mhz": 1980,
    "versions": {"torch": "2.11.0"},
    "commit": "c" * 40,
    "date": "2026-11-22T12:00:00+00:00",
    "command": "python benchmarks/engine.py",
    "model": "random",
}
EMPTY = "".join(
    f"<!-- results: {name} -->\n<!-- end -->\n"
    for name in (
        "engine",
        "family",
        "ablation",
        "weights",
        "adapters",
        "loading",
        "publishing",
        "concurrency",
        "cpu",
        "exactness",
    )
)


def row(case, requests, new_tokens, wall_s, **changes):
    rates = {"pages_per_s": requests / wall_s, "tokens_per_s": requests * new_tokens / wall_s}
    values = {"engine": "deepsynth", "case": case, "requests": requests, "new_tokens": new_tokens, "wall_s": wall_s}
    return {**values, **rates, **ORIGIN, **changes}


def write(folder, name, rows):
    (folder / name).write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")


@pytest.fixture
def results(tmp_path):
    ceilings = {"copy_bytes_per_s": 3e12, "matmul_flops_per_s": 5e14, "bytes_per_weight": 2}
    sweep = [
        row(
            "sweep", 2 * clients, 256, 2.0, clients=clients, latency_p50_s=1.0, latency_p99_s=1.5, first_token_p50_s=0.1
        )
        for clients in (1, 4, 16)
    ]
    engine = [
        row("prefill", 256, 1, 2.0),
        row("prefill", 256, 1, 1.0, date="2026-11-21T12:00:00+00:00"),
        row("prefill", 256, 1, 6.0, ablation="vision-batching"),
        {"benchmark": "engine", "ceilings": ceilings, **ORIGIN},
        row("throughput", 256, 512, 4.0),
        row("throughput", 256, 512, 4.1, adapters=8, adapter_rank=16, date="2026-11-23T12:00:00+00:00"),
        row("adapters", 256, 512, 5.0, adapters=8, adapter_rank=16, date="2026-11-23T12:00:00+00:00"),
        *sweep,
        row("prefill", 256, 1, 0.5, weights="int8"),
        row("sweep", 8, 256, 9.0, weights="int8", clients=4),
        {"benchmark": "engine", "ceilings": ceilings | {"copy_bytes_per_s": 9e12}, "weights": "int8", **ORIGIN},
    ]
    write(tmp_path, "engine-card-x.jsonl", engine)
    write(tmp_path, "peers-card-x.jsonl", [row("prefill", 256, 1, 8.0, engine="vllm")])
    way = {"reader": "nano", "how": "1 thread", "pages": 4, "seconds_per_page": 2.0, "pages_per_s": 0.5, "cer": 0.125}
    write(tmp_path, "cpu-reading-card-x.jsonl", [{**way, **ORIGIN}])
    company = {"pages": 9, "identical_character_ratio": 0.9991, "identical_page_ratio": 0.8}
    company |= {"reference_cer": 0.05, "engine_cer": 0.051}
    exactness = {"benchmark": "exactness", "company": company, "dtype": "bfloat16", "weights": "0123456789ab", **ORIGIN}
    write(tmp_path, "exactness.jsonl", [exactness, exactness | {"runner": "plain"}])
    return tmp_path


def test_an_idea_counts_against_the_engine_of_its_own_commit(results):
    page, _ = render(EMPTY, results)
    with (results / "engine-card-x.jsonl").open("a", encoding="utf-8") as out:
        later = {"commit": "d" * 40, "date": "2026-11-24T12:00:00+00:00"}
        ceilings = {"copy_bytes_per_s": 3e12, "matmul_flops_per_s": 5e14, "bytes_per_weight": 2}
        for each in (row("prefill", 256, 1, 0.25, **later), {"ceilings": ceilings, **ORIGIN, **later}):
            out.write(json.dumps(each) + "\n")
    newer, _ = render(EMPTY, results)
    assert "| vision-batching | 42.67 pages/s, 3.00x slower |" in page
    assert "| vision-batching | 42.67 pages/s, 3.00x slower |" in newer
    assert "**1024**" in newer


def test_models_of_the_family_are_side_by_side(results):
    assert "| case | unit | DeepSeek-OCR |" not in render(EMPTY, results)[0]
    write(results, "engine-ocr2-card-x.jsonl", [row("prefill", 256, 1, 4.0, model="random-ocr2")])
    page, _ = render(EMPTY, results)
    assert "| case | unit | DeepSeek-OCR | DeepSeek-OCR-2 |" in page
    assert "| SMALL, 256 requests, 1 new token | pages/s | 128 | 64 |" in page


def test_tables_say_what_the_rows_say(results):
    page, drawn = render(EMPTY, results)
    assert "| SMALL, 256 requests, 1 new token | pages/s | **128** | 32 (recorded) | 4.0 |" in page
    assert "| vision-batching | 42.67 pages/s, 3.00x slower |" in page
    assert "| SMALL, 256 requests, 1 new token | pages/s | **512** | 128 | 4.00 |" in page
    assert page.count("**512**") == 1, "8-bit rows stand in no other table"
    assert "copy 3.00 TB/s" in page
    assert "| base alone, no adapters resident | 64 | 102.5% |" in page
    assert "| 8 adapters of rank 16 in turn, in one batch | 51.2 | 82.0% |" in page
    assert "| 4 | 4 | 1024 | 1 s | 1.5 s | 0.1 s |" in page
    assert "| nano | 1 thread | 4 | 2.00 | 0.50 | 12.5% |" in page
    assert "| Card X, bfloat16 | 01234567 | 9 | 99.910% | 80.000% | 5.00% | 5.10% |" in page
    assert "| Card X, bfloat16, plain torch | 01234567 | 9 |" in page
    assert "Card X at 1980 MHz, torch 2.11.0, commit cccccccccc, 2026-11-22" in page
    assert PICTURE.name in page
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert drawn.count("<polyline") == 4


def test_rendering_twice_changes_nothing(results):
    page, _ = render(EMPTY, results)
    assert render(page, results)[0] == page


def test_without_results_the_page_says_so(tmp_path):
    page, drawn = render(EMPTY, tmp_path)
    assert page.count("No results are committed yet.") == len(MARKED.findall(EMPTY))
    assert drawn is None


def test_the_newest_run_counts():
    old = row("ttft", 1, 1, 0.01, date="2026-11-20T12:00:00+00:00")
    both = [row("ttft", 1, 1, 0.03), row("ttft", 1, 1, 0.02)]
    assert newest([old, *both]) == both


def test_the_committed_page_is_what_the_committed_results_give():
    text = PAGE.read_text(encoding="utf-8")
    page, drawn = render(text)
    assert page == text, "run `python benchmarks/report.py --write`"
    assert drawn is None or PICTURE.read_text(encoding="utf-8") == drawn


def test_a_panel_of_one_point_has_a_place_for_it():
    text = draw([Panel("t", "x", "y", [Line("a < b", [(1, 0.5)])])])
    assert "a &lt; b" in text
    ElementTree.fromstring(text)
