"""A run at its edges: nothing held out, one update, made longer, never begun; a backend by model."""

from __future__ import annotations

import json

import pytest

from tests.support.training import events, run_small, write_checkpoint, write_words
from trainer.backends import peft, select
from trainer.cli import main
from trainer.commands.train import choose_backend
from trainer.evaluation.seen import SEEN_FILE, SeenPages
from trainer.training.errors import TrainingCode, TrainingError
from trainer.training.options import TrainingOptions, make_options
from trainer.training.output import run_folder


@pytest.fixture
def place(tmp_path):
    write_checkpoint(tmp_path / "model")
    write_words(tmp_path / "words", 16)
    return tmp_path


def test_a_run_says_how_it_was_measured(place):
    summary = str(run_small(place, max_steps=2, max_eval_samples=3))
    assert "3 held-out pages: CER" in summary
    assert "stopped early" not in summary


def test_a_run_without_held_out_pages_says_so_at_both_ends(place, capsys):
    summary = run_small(place, dataset_name=str(place / "words" / "train"), validation_share=0.0, max_steps=1)
    assert "nothing was held out" in str(summary)
    assert "no held-out pages" in capsys.readouterr().err


def test_the_first_of_one_update_learns(place):
    run_small(place, max_steps=1, logging_steps=1)
    (logged,) = [event for event in events(place / "run", "log") if "learning_rate" in event]
    assert logged["learning_rate"] > 0


def test_pages_that_were_trained_on_are_kept_as_digests_alone(place):
    run_small(place, max_steps=1)
    lines = (place / "run" / SEEN_FILE).read_text().splitlines()
    record = json.loads((place / "run" / "run.json").read_text())
    assert len(lines) == record["data"]["num_samples"] == 12
    assert SeenPages.of_run(place / "run") is not None
    assert SeenPages.of_run(place) is None


def test_a_finished_run_can_be_made_longer(place):
    run_small(place, max_steps=2, eval_steps=2)
    assert run_small(place, resume=True, max_steps=4, eval_steps=2).steps == 4


def test_a_run_that_never_began_blocks_nothing(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with run_folder(tmp_path / "run", resume=False, overwrite=False):
        assert not (tmp_path / "run" / "run.json").exists()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "run" / "log.jsonl").write_text("{}\n")
    with pytest.raises(TrainingError) as refused, run_folder(tmp_path / "run", resume=False, overwrite=False):
        pass
    assert refused.value.code is TrainingCode.OUTPUT_EXISTS


def test_limits_can_be_lifted_on_the_command_line():
    options = make_options({"early-stopping-patience": "none", "max-eval-samples": "all", "hub_model_id": "none"})
    assert (options.early_stopping_patience, options.max_eval_samples) == (None, None)
    assert options.hub_model_id == "none"
    with pytest.raises(TrainingError, match="a whole number"):
        make_options({"lora-rank": "none"})


@pytest.mark.parametrize("is_recorded", [False, True])
def test_auto_never_takes_unsloth_where_steps_are_recorded(tmp_path, monkeypatch, is_recorded):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deepseek_ocr2"}))
    asked = []
    monkeypatch.setattr("importlib.util.find_spec", asked.append)
    options = TrainingOptions(model=str(tmp_path), cuda_graphs=is_recorded)
    assert choose_backend(options, "cuda") is peft.adapt
    assert asked == ([] if is_recorded else ["unsloth"])


def test_cuda_graphs_need_a_gpu(place, capsys):
    words = ["--cuda-graphs", "--device", "cpu", "--dataset-name", str(place / "words")]
    assert main(["train", *words, "--output-dir", str(place / "run")]) == 2
    assert "[gpu_missing]" in capsys.readouterr().err
    assert not (place / "run").exists()


@pytest.mark.parametrize(
    ("model_type", "is_unsloth"), [("deepseek_vl_v2", False), ("deepseek_ocr2", True), ("bert", False), (None, False)]
)
def test_auto_takes_unsloth_for_models_that_it_knows(tmp_path, monkeypatch, model_type, is_unsloth):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    # Unsloth is installed as far as anybody asks; importing it is not tried.
    asked = []
    monkeypatch.setattr("importlib.util.find_spec", asked.append)
    assert select.unsloth_backend(str(tmp_path), required=False) is peft.adapt
    assert asked == (["unsloth"] if is_unsloth else [])
    with pytest.raises(TrainingError, match="not installed"):
        select.unsloth_backend(str(tmp_path), required=True)
