"""A run that begins with an adapter: its shape, its weights, what it has seen, and never a worse one."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.training import events, run_small, write_checkpoint, write_words
from trainer.cli import main
from trainer.evaluation.seen import SEEN_FILE
from trainer.training.checkpoints import FILES
from trainer.training.errors import TrainingCode, TrainingError
from trainer.training.start import shaping_options


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run of rank 3 on two kinds of modules, to begin with."""
    folder = tmp_path_factory.mktemp("start")
    write_checkpoint(folder / "model")
    write_words(folder / "words", 16)
    run_small(folder, output_dir=folder / "first", lora_rank=3, lora_alpha=5, target_modules=("q_proj", "v_proj"),
              max_steps=3, learning_rate=0.02)  # fmt: skip
    return folder


@pytest.fixture(autouse=True)
def clean(place):
    yield
    for name in ("run", "other"):
        shutil.rmtree(place / name, ignore_errors=True)


def go_on(place, *words):
    return main(["train", "--init-from", str(place / "first"), "--model", str(place / "model"), "--device", "cpu",
                 "--dataset-name", str(place / "words"), "--output-dir", str(place / "run"), "--no-use-tensorboard",
                 "--max-steps", "1", "--max-eval-samples", "2", "--max-new-tokens", "4", *words])  # fmt: skip


def test_it_has_the_shape_and_the_weights_of_the_first(place):
    # Too small a rate to change anything: what is written is what was read.
    assert go_on(place, "--learning-rate", "1e-30") == 0
    first, last = (load_file(place / name / "best" / "adapter_model.safetensors") for name in ("first", "run"))
    assert first.keys() == last.keys()
    assert all(torch.equal(first[key], last[key]) for key in first)
    config = json.loads((place / "run" / "best" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 5)
    record = json.loads((place / "run" / "run.json").read_text())
    assert record["init_from"]["name"] == "first"
    assert record["init_from"]["seen_pages"] == len((place / "first" / SEEN_FILE).read_text().splitlines())


def test_the_base_model_and_the_first_adapter_are_measured_apart(place):
    assert go_on(place) == 0
    (base,), checks = events(place / "run", "base"), events(place / "run", "evaluate")
    (before,) = events(place / "first", "base")
    assert base["cer_capped"] == before["cer_capped"]
    assert [each["step"] for each in checks] == [0, 1]


def test_pages_of_the_first_run_stay_seen(place):
    write_words(place / "other", 8)
    assert go_on(place, "--dataset-name", str(place / "other")) == 0
    seen = set((place / "run" / SEEN_FILE).read_text().splitlines())
    assert set((place / "first" / SEEN_FILE).read_text().splitlines()) <= seen


def test_an_adapter_that_got_worse_is_not_kept_even_by_a_resumed_run(place):
    """With a rate that destroys it, the adapter that the run began with stays the best."""
    words = ["--learning-rate", "5", "--max-grad-norm", "100", "--lr-scheduler", "constant", "--eval-steps", "1"]
    assert go_on(place, *words) == 0
    assert go_on(place, *words, "--max-steps", "2", "--resume") == 0
    checks = [event["cer"] for event in events(place / "run", "evaluate")]
    kept = json.loads((place / "run" / "best" / "step.json").read_text())
    assert kept["cer"] == pytest.approx(min(checks))
    assert json.loads((place / "run" / "best" / FILES).read_text())


@pytest.mark.parametrize(
    ("words", "named"), [(["--lora-rank", "8"], "lora-rank"), (["--target-modules", "o_proj"], "modules")]
)
def test_another_shape_is_refused(place, capsys, words, named):
    assert go_on(place, *words) == 2
    said = capsys.readouterr().err
    assert named in said
    assert "leave it out" in said
    assert "[option_invalid]" in said


def test_another_base_model_and_no_adapter_are_refused(place, capsys, tmp_path):
    wider = tmp_path / "wider"
    shutil.copytree(place / "first" / "best", wider)
    tensors = load_file(wider / "adapter_model.safetensors")
    save_file({key: each.repeat(1, 2) for key, each in tensors.items()}, wider / "adapter_model.safetensors")
    assert main(["train", "--init-from", str(wider), "--model", str(place / "model"), "--dataset-name",
                 str(place / "words"), "--output-dir", str(place / "run"), "--device", "cpu"]) == 2  # fmt: skip
    assert "does not fit" in capsys.readouterr().err
    # DeepSeek-OCR-2's names.
    save_file({key.replace("model.layers", "model.language_model.layers"): each for key, each in tensors.items()},
              wider / "adapter_model.safetensors")  # fmt: skip
    assert main(["train", "--init-from", str(wider), "--model", str(place / "model"), "--dataset-name",
                 str(place / "words"), "--output-dir", str(place / "run"), "--device", "cpu"]) == 2  # fmt: skip
    assert "does not fit" in capsys.readouterr().err
    assert main(["train", "--init-from", str(place / "none"), "--dataset-name", "x"]) == 2
    assert "there is no adapter" in capsys.readouterr().err


def test_a_resumed_run_begins_with_the_same_adapter(place):
    assert go_on(place) == 0
    with pytest.raises(TrainingError) as refused:
        run_small(place, resume=True, max_steps=1)
    assert refused.value.code is TrainingCode.RESUME_MISMATCH


def test_the_shape_is_read_from_the_files_alone(place):
    values = shaping_options(str(place / "first"), {"lora_rank": 3})
    assert (values["lora_rank"], values["lora_alpha"], values["use_rslora"]) == (3, 5.0, False)
    assert {name.rsplit(".", 1)[-1] for name in values["target_modules"]} == {"q_proj", "v_proj"}
