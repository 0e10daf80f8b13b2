import json
import subprocess
import sys

import pytest
import torch

from benchmarks.ablation import AblationError, Idea, plain_mixture, without
from benchmarks.cases import CASES, choose_cases, row_of
from benchmarks.floors import Ceilings, Decoding, floor_s, view_flops
from benchmarks.ratios import TARGETS, best_rows, measure, recorded_peers, summary
from shared.deepseek_ocr.configuration import DeepseekOcrConfig
from shared.deepseek_ocr.moe import grouped_experts
from tests.support.nano import needs_nano
from tests.support.programs import ROOT

H100 = Ceilings(copy_bytes_per_s=3.0e12, matmul_flops_per_s=500e12)
PUBLIC = DeepseekOcrConfig()
BY_NAME = {case.name: case for case in CASES}


def ours(name: str, wall_s: float, **changes) -> dict:
    case = BY_NAME[name]
    row = row_of("deepsynth", case, prompt_tokens=276, generated_tokens=case.requests, wall_s=wall_s)
    return row | changes


def test_arithmetic_of_the_public_dimensions():
    decoding = Decoding(PUBLIC.text_config, 2)
    assert 2 * (decoding.weights_touched(1) + decoding.head_weights) == pytest.approx(1.146e9, rel=0.01)
    assert 2 * (decoding.weights_touched(10_000) + decoding.head_weights) == pytest.approx(5.5e9, rel=0.01)
    assert decoding.kv_bytes_per_token == 61_440
    assert view_flops(PUBLIC, 1024) == pytest.approx(1.08e12, rel=0.03)
    assert view_flops(PUBLIC, 640) == pytest.approx(0.36e12, rel=0.06)


@pytest.mark.parametrize(
    ("name", "pages_per_s"), [("throughput", 83), ("throughput-page", 36), ("prefill-page", 115), ("prefill", 350)]
)
def test_floors_are_those_known(name, pages_per_s):
    case = BY_NAME[name]
    assert case.requests / floor_s(PUBLIC, case, 256, H100) == pytest.approx(pages_per_s, rel=0.08)


def test_floor_of_one_token():
    assert Decoding(PUBLIC.text_config, 2).step_s(1, 400, H100) == pytest.approx(0.38e-3, rel=0.04)


def test_cases_are_cut_down_on_request_and_unknown_ones_refused():
    (case,) = choose_cases(["throughput"], 2, 3)
    assert (case.requests, case.new_tokens) == (2, 3)
    with pytest.raises(ValueError, match="sped"):
        choose_cases(["sped"], None, None)


def test_only_whole_runs_of_the_whole_engine_count_and_the_better_one():
    rows = [
        ours("ttft", 0.03),
        ours("ttft", 0.02),
        ours("ttft", 0.01, ablation="graphs"),
        ours("prefill", 1.0, requests=4),
        ours("ttft", 0.001, engine="vllm"),
    ]
    best = best_rows(rows, "deepsynth")
    assert best.keys() == {"ttft"}
    assert measure(best, "ttft") == 0.02


def test_time_per_token_leaves_the_first_one_out():
    best = best_rows([ours("ttft", 0.1), ours("latency", 0.1 + 256 * 0.002)], "deepsynth")
    assert measure(best, "latency") == pytest.approx(2.0)
    assert measure(best_rows([ours("latency", 0.6)], "deepsynth"), "latency") is None


def test_summary_prefers_peers_of_the_same_run_and_says_where_they_come_from():
    recorded = recorded_peers("nvidia-h100-80gb-hbm3")
    assert {row["engine"] for row in recorded} == {"vllm"}
    rows = [ours("prefill", 256 / 143.0), ours("ttft", 0.039)]
    alone = summary(rows, recorded, PUBLIC, 256, H100, TARGETS)["summary"]
    assert alone["prefill"]["vllm_ratio"] == pytest.approx(143 / 28.6, rel=0.01)
    assert alone["prefill"]["vllm_source"] == "recorded"
    assert alone["ttft"]["vllm_ratio"] == pytest.approx(2.0, rel=0.01)
    assert (alone["prefill"]["target"], alone["prefill"]["target_met"]) == (150.0, False)
    assert 0 < alone["prefill"]["floor_share_ratio"] < 1
    beside = summary([*rows, ours("ttft", 0.078 / 2, engine="vllm")], recorded, PUBLIC, 256, H100, {})["summary"]
    assert beside["ttft"]["vllm_source"] == "measured in this run"
    assert beside["ttft"]["vllm_ratio"] == pytest.approx(1.0)


@needs_nano
def test_program_reads_the_smallest_case_and_ends_with_its_ratios(tmp_path):
    options = ["--model", "nano", "--device", "cpu", "--cases", "ttft", "--batch-size", "2", "--workers", "1"]
    program = [sys.executable, ROOT / "benchmarks" / "engine.py", *options, "--out", tmp_path / "rows.jsonl"]
    if torch.get_num_threads() > 2:
        program += ["--threads", "2"]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    last = json.loads(done.stdout.splitlines()[-1])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows[-1] == last
    assert [row["case"] for row in rows[:-1]] == ["ttft", "ttft"]
    assert {"requests", "prompt_tokens", "new_tokens", "wall_s", "pages_per_s", "tokens_per_s"} <= rows[0].keys()
    assert {"card", "clock_mhz", "versions", "commit"} <= rows[0].keys()
    assert last["summary"]["ttft"]["floor_share_ratio"] > 0


def test_plain_mixture_is_the_reference():
    torch.manual_seed(0)
    x, gate_up, down = torch.randn(7, 32), torch.randn(5, 48, 32), torch.randn(5, 32, 24)
    weights, experts = torch.rand(7, 5).topk(3)
    expected = grouped_experts(x, weights, experts, gate_up, down)
    assert torch.allclose(plain_mixture(x, weights, experts, gate_up, down), expected, rtol=1e-4, atol=1e-4)


def test_an_idea_that_a_cpu_does_not_have_cannot_be_left_out():
    with pytest.raises(AblationError, match="graphs"), without(Idea.GRAPHS, "cpu"):
        pass
