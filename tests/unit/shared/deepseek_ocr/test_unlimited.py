"""Unlimited-OCR against transformers' own class: recorded answers, and live ones where transformers 5.23 is at hand."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from service.engine.config import EngineLimits
from service.engine.cpu.runner import CpuRunner, Prompt
from service.engine.factory import make_engine
from service.engine.protocol import SequenceResult
from shared.contract.prompts import Task
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.checkpoint import CheckpointError, save_checkpoint
from shared.deepseek_ocr.geometry import Mode
from shared.deepseek_ocr.loading import LoadedCheckpoint, load_checkpoint
from shared.deepseek_ocr.protocol import OcrModel
from shared.deepseek_ocr.unlimited import UNLIMITED_GEOMETRY, UnlimitedOcr, UnlimitedOcrConfig
from tests.support.lora import merged, random_adapter
from tests.support.programs import ROOT
from tests.unit.service.engine.tiny import drain, tiny_model, tiny_request, tiny_tokenizer
from tests.unit.shared.deepseek_ocr.test_model_ocr2 import write_tokenizer

REFERENCE = Path(__file__).parent / "reference"
JUDGE = ROOT / ".venv-judge"
SURE = 1e-4
"""A choice whose runner-up is closer is decided by rounding; nothing after it is compared."""
RULE = LoopRule(max_period=4, min_tokens=16, min_repeats=3)
"""Takes back so little that the answers go round their ring many times."""


def noise(seed: int, count: int, size_px: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, size_px // 8, size_px // 8, 3), generator=generator, dtype=torch.uint8)
    return coarse.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)


def write_public(folder: Path, window: int, **changes: Any) -> Path:
    """The recorded model's weights, with the config.json of an Unlimited-OCR."""
    shutil.copytree(REFERENCE / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unlimited-ocr", "sliding_window": window, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


@torch.inference_mode()
def prompt_of(model: OcrModel, case: dict[str, Any], prompt: list[int]) -> Prompt:
    """The case's pages and prompt; the tiles, where there are any, are the first page's."""
    views = torch.cat([noise(seed, 1, case["px"]) for seed in case["globals"]])
    tiles = noise(100, case["tiles"], 128) if case["tiles"] else None
    features = model.image_features(views, tiles, [case["grid"]] * len(views))
    assert [len(page) for page in features] == case["vision_tokens"]
    return Prompt([0] + [3] * sum(map(len, features)) + prompt, torch.cat(features))


def read_through_engine(model: OcrModel, prompts: list[Prompt], count: int, *, packed: bool) -> list[list[int]]:
    """Greedy tokens of all prompts in one batch."""
    runner = CpuRunner(model, max_rows=4, max_tokens=1000, eos_id=-1, rule=RULE, growth_tokens=16)
    if not packed:
        runner._packed = None
    tokens = [[choice.token] for choice in runner.prefill(prompts)]
    for _ in range(count - 1):
        for row, choice in zip(tokens, runner.decode([row[-1] for row in tokens], {}), strict=True):
            row.append(choice.token)
    longest = max(len(prompt.ids) for prompt in prompts)
    assert runner._exact.cache.capacity <= longest + 24 + RULE.max_rewind + 16
    return tokens


def num_sure(case: dict[str, Any]) -> int:
    close = [index for index, margin in enumerate(case["margins"]) if margin < SURE]
    return close[0] if close else len(case["margins"])


def assert_as_judged(model: OcrModel, expected: dict[str, Any], least_sure: int) -> None:
    cases = list(expected["cases"].values())
    prompts = [prompt_of(model, case, expected["prompt"]) for case in cases]
    for packed in (True, False):
        answers = read_through_engine(model, prompts, len(cases[0]["tokens"]), packed=packed)
        for case, answer in zip(cases, answers, strict=True):
            sure = num_sure(case)
            assert sure >= least_sure
            assert answer[:sure] == case["tokens"][:sure]


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads((REFERENCE / "unlimited_expected.json").read_text())
    return recorded


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, expected: dict[str, Any]) -> Path:
    return write_public(tmp_path_factory.mktemp("public") / "model", expected["window"])


def test_pages_alone_with_tiles_and_together_give_the_recorded_tokens(folder: Path, expected: dict[str, Any]):
    assert_as_judged(load_checkpoint(folder).model, expected, least_sure=200)


def test_the_window_is_in_the_proof(folder: Path, expected: dict[str, Any], tmp_path: Path):
    other = load_checkpoint(write_public(tmp_path / "model", expected["window"] + 1)).model
    case = expected["cases"]["page"]
    (answer,) = read_through_engine(other, [prompt_of(other, case, expected["prompt"])], 200, packed=True)
    assert answer[: expected["window"]] == case["tokens"][: expected["window"]]
    assert answer != case["tokens"]


def test_generate_gives_the_same_tokens_and_logits(folder: Path, expected: dict[str, Any]):
    model = load_checkpoint(folder).model
    case = expected["cases"]["tiles"]
    ids = torch.tensor([prompt_of(model, case, expected["prompt"]).ids])
    images = {
        "global_views_BHWC": noise(1, 1, case["px"]),
        "tiles_THWC": noise(100, case["tiles"], 128),
        "tile_grids_B2": [case["grid"]],
    }
    output = model.generate(
        ids, **images, max_new_tokens=200, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    assert output.sequences[0, ids.shape[1] :].tolist() == case["tokens"]
    torch.testing.assert_close(output.logits[-1][0, :16], torch.tensor(case["last_logits"]), rtol=1e-3, atol=1e-3)


def test_a_checkpoint_says_what_it_is_and_keeps_it(folder: Path, tmp_path: Path):
    loaded = load_checkpoint(folder)
    assert isinstance(loaded.model, UnlimitedOcr)
    assert loaded.geometry == UNLIMITED_GEOMETRY
    assert loaded.geometry.modes == (Mode.BASE, Mode.GUNDAM)
    assert loaded.tasks == (Task.FREE, Task.MARKDOWN, Task.OCR)
    save_checkpoint(loaded.model, tmp_path, "float32")
    write_tokenizer(tmp_path)
    again = load_checkpoint(tmp_path).model
    assert again.config.to_dict() == loaded.model.config.to_dict()
    assert again.config.text_config.answer_window == 24


def test_a_task_that_the_model_has_no_prompt_for_stops_the_load(tmp_path: Path):
    with pytest.raises(CheckpointError, match="tasks"):
        load_checkpoint(write_public(tmp_path / "model", 24, tasks=["free", "figure"]))


def test_an_adapter_in_pefts_names_is_served_as_if_it_were_merged(tmp_path: Path):
    known = tiny_model()
    model = UnlimitedOcr(UnlimitedOcrConfig(**known.config.to_dict() | {"model_type": "unlimited-ocr"})).eval()
    model.load_state_dict(known.state_dict())
    model.config.text_config.answer_window = 8
    files = random_adapter(model, 1, strength=2.0)

    def text_of(each: OcrModel, model_id: str = "m") -> str:
        limits = EngineLimits(batch_size=2, adapter_slots=1, adapter_max_rank=8, loop_rule=RULE)
        engine = make_engine(LoadedCheckpoint(each, tiny_tokenizer(), each.geometry, "m"), limits)
        assert (engine.info.family, engine.info.adapter_slots) == ("Unlimited-OCR", 1)
        engine.load_adapter("invoices@1", files)
        engine.submit(tiny_request("a", max_new_tokens=60, model_id=model_id))
        (result,) = (event for event in drain(engine) if isinstance(event, SequenceResult))
        return result.text

    adapted = text_of(model, "invoices@1")
    assert adapted == text_of(merged(model, files)) != text_of(model)


def test_layers_that_see_the_whole_answer_are_refused(tmp_path: Path):
    folder = write_public(tmp_path / "model", 24)
    config = {"model_type": "unlimited_ocr", "text_config": {"layer_types": ["full_attention"]}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="layer_types has other layers"):
        load_checkpoint(folder)


@pytest.mark.skipif(not (JUDGE / "transformers").is_dir(), reason="no transformers 5.23 in .venv-judge")
def test_models_saved_by_transformers_give_the_tokens_of_its_generate(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(JUDGE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REFERENCE / "judge_unlimited.py"), str(tmp_path), "1", "2", "3"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    for folder in sorted(tmp_path.iterdir()):
        write_tokenizer(folder)
        judged = json.loads((folder / "expected.json").read_text())
        assert_as_judged(load_checkpoint(folder).model, judged, least_sure=judged["window"] + 1)
