"""Whole runs on the tiny model: what they leave, how they go on after a stop, what they refuse."""

from __future__ import annotations

import errno
import json
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.training import CPU, events, run_small, small_options, write_checkpoint, write_words
from trainer.backends import peft as plain
from trainer.cli import main
from trainer.training import checkpoints, loop
from trainer.training.errors import TrainingCode, TrainingError, TrainingStopped
from trainer.training.options import make_options
from trainer.training.run import train


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    write_checkpoint(folder / "model")
    write_words(folder / "words", 24)
    return folder


@pytest.fixture(autouse=True)
def clean(place):
    yield
    shutil.rmtree(place / "run", ignore_errors=True)


def weights(run, name="best"):
    return load_file(run / name / "adapter_model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def uninterrupted(place):
    """The last checkpoint of a run with dropout that nothing disturbs."""
    run_small(place, lora_dropout=0.2, save_steps=1, output_dir=place / "whole")
    return place / "whole"


def test_a_run_leaves_an_adapter_that_changes_the_loss_and_a_record(place):
    summary = run_small(place, learning_rate=0.05, max_steps=12)
    run = place / "run"
    losses = [event["loss"] for event in events(run, "log")]
    assert losses[-1] < 0.8 * losses[0]
    assert summary.best_cer == pytest.approx(min(event["cer"] for event in events(run, "evaluate")))
    assert summary.base_cer == pytest.approx(events(run, "base")[0]["cer"])
    record = json.loads((run / "run.json").read_text())
    assert record["data"]["num_samples"] == 18
    assert record["data"]["parts"]["validation"]["samples"] == 3
    assert len(record["data"]["fingerprint"]) == 64
    config = json.loads((run / "best" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "model"
    assert str(place) not in json.dumps(config)
    assert {path.name for path in run.iterdir() if not path.name.startswith(".")} == {
        "run.json", "log.jsonl", "checkpoints", "best", "seen-pages.txt"
    }  # fmt: skip
    assert any(tensor.abs().max() > 0 for key, tensor in weights(run).items() if ".lora_B." in key)


def test_steps_as_recordings_train_the_same_adapter(place):
    """Here without a recording, but on the same way: whole lengths filled up, gradients added by hand."""
    run_small(place)
    plain_run = weights(place / "run")
    run_small(place, overwrite=True, cuda_graphs=True, gradient_accumulation_steps=1)
    for name, each in weights(place / "run").items():
        torch.testing.assert_close(each, plain_run[name], rtol=1e-3, atol=1e-5)


def test_what_the_contract_asks_of_an_adapter_holds(place):
    from shared.contract.lora_content import ContentLimits, check_modules, read_content
    from trainer.publishing.gate import module_shapes

    run_small(place, max_steps=3, target_modules=("q_proj", "down_proj"))
    best = place / "run" / "best"
    content = read_content(best / "adapter_config.json", best / "adapter_model.safetensors", ContentLimits())
    check_modules(content, module_shapes(place / "model"))
    assert content.record.targets == ("down_proj", "q_proj")


@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_stopped_run_goes_on_bit_for_bit(place, uninterrupted, stop_at, monkeypatch):
    wanted = small_options(place, lora_dropout=0.2, save_steps=1, keep_checkpoints=10)
    stopped = []

    def stop(event):
        if event["event"] == "log" and event["step"] == stop_at and not stopped:
            stopped.append(event)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(TrainingStopped, match=rf"update {stop_at + 1}|update {stop_at}"):
        train(make_options(wanted), plain.adapt, CPU, progress=stop)
    assert not (place / "run" / "checkpoints" / "step-6").exists()
    torch.manual_seed(999)  # whatever this process has drawn since must not matter
    train(make_options(wanted), plain.adapt, CPU, resume=True)
    assert same(weights(place / "run" / "checkpoints", "step-6"), weights(uninterrupted / "checkpoints", "step-6"))
    assert same(weights(place / "run"), weights(uninterrupted))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        first, second = (
            torch.load(folder / "checkpoints" / "step-6" / name, weights_only=False)
            for folder in (place / "run", uninterrupted)
        )
        assert str(first) == str(second), name


def test_a_corrupt_checkpoint_is_passed_over_and_none_sound_is_an_error(place):
    run_small(place, save_steps=2, keep_checkpoints=3)
    folder = place / "run" / "checkpoints"
    for step in (6, 4):
        data = bytearray((folder / f"step-{step}" / "optimizer.pt").read_bytes())
        data[len(data) // 2] ^= 1
        (folder / f"step-{step}" / "optimizer.pt").write_bytes(data)
    run_small(place, resume=True, save_steps=2, keep_checkpoints=3)
    assert [event["fault"] for event in events(place / "run", "checkpoint_refused")] == [
        "step-6: optimizer.pt has changed", "step-4: optimizer.pt has changed"
    ]  # fmt: skip
    for path in folder.glob("step-*"):
        (path / "files.json").unlink()
    with pytest.raises(TrainingError, match=r"no checkpoint .* is sound") as caught:
        run_small(place, resume=True, save_steps=2, keep_checkpoints=3)
    assert caught.value.code is TrainingCode.CHECKPOINT_CORRUPT


def test_a_full_disk_keeps_the_last_checkpoint(place, monkeypatch):
    real, calls = save_file, []

    def full_at_the_third(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args, **kwargs)

    monkeypatch.setattr("trainer.training.adapter.save_file", full_at_the_third)
    with pytest.raises(TrainingError, match=r"disk .* is full; .* --resume") as caught:
        run_small(place, save_steps=1, eval_steps=6, keep_checkpoints=5)
    assert caught.value.code is TrainingCode.DISK_FULL
    newest, faults = checkpoints.newest_valid(place / "run" / "checkpoints")
    assert (newest.name, faults) == ("step-2", [])
    run_small(place, resume=True, save_steps=1, eval_steps=6, keep_checkpoints=5)
    assert checkpoints.validation_error(place / "run" / "best") is None


def test_a_loss_that_is_no_number_ends_the_run(place):
    with pytest.raises(TrainingError, match="the loss is nan") as caught:
        run_small(place, learning_rate=1e30, max_grad_norm=1e30, max_steps=8, eval_steps=2, lr_scheduler="constant")
    assert caught.value.code is TrainingCode.LOSS_NOT_FINITE


def test_memory_that_runs_out_halves_the_batch_and_changes_nothing_learnt(place, monkeypatch):
    run_small(place, max_steps=3)
    expected = weights(place / "run")
    original, failures = loop.PageTrainer.compute_loss, []

    def scarce(self, model, inputs, *args, **kwargs):
        if len(inputs["labels"]) > 1 and len(failures) < 2 and self.state.global_step == 1:
            failures.append(len(inputs["labels"]))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(loop.PageTrainer, "compute_loss", scarce)
    run_small(place, max_steps=3, overwrite=True)
    assert failures == [4, 2]
    assert [event["batch_pieces"] for event in events(place / "run", "log") if "batch_pieces" in event] == [2, 4]
    found = weights(place / "run")
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=2e-4, rtol=1e-3)


def test_a_sample_that_never_fits_is_an_error_that_says_what_to_do(place, monkeypatch):
    def scarce(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop.PageTrainer, "compute_loss", scarce)
    with pytest.raises(TrainingError, match=r"--gradient-checkpointing"):
        run_small(place)


def test_checks_read_fewer_pages_together_when_memory_runs_out(place, monkeypatch):
    from trainer.reading.generation import generate_from_features

    sizes = []

    def scarce(*words):
        sizes.append(words[-1])
        if words[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate_from_features(*words)

    monkeypatch.setattr("trainer.training.validation.generate_from_features", scarce)
    run_small(place, max_steps=1)
    assert sizes[:3] == [8, 4, 2]


def test_tensorboard_gets_losses_and_error_rates(place):
    run_small(place, max_steps=2, eval_steps=2, use_tensorboard=True)
    (file,) = (place / "run" / "tensorboard").iterdir()
    data = file.read_bytes()
    assert b"eval/cer" in data
    assert b"train/loss" in data


def test_features_are_computed_once_for_each_page(place, monkeypatch):
    from trainer.training import setup as assembly

    encoded, original = [], assembly.encode_samples

    def counted(adapted, reader, samples, rows, device):
        encoded.extend((id(samples), row) for row in rows)
        return original(adapted, reader, samples, rows, device)

    monkeypatch.setattr(assembly, "encode_samples", counted)
    run_small(place, max_steps=12)
    assert len(encoded) == len(set(encoded)) == 18 + 3


def test_cached_and_fresh_features_teach_the_same(place):
    run_small(place, max_steps=3)
    expected = weights(place / "run")
    run_small(place, max_steps=3, overwrite=True, feature_memory_gb=0.0, feature_disk_gb=0.0)
    assert same(weights(place / "run"), expected)


def test_the_vision_part_can_be_trained_by_choice(place):
    run_small(place, max_steps=3, train_vision=True, target_modules=("q_proj", "qkv_proj", "layers"))
    touched = {key.split(".")[3] for key, tensor in weights(place / "run").items() if tensor.abs().max() > 0}
    assert {"layers", "vision_model", "projector"} <= touched


def test_recomputed_layers_teach_the_same(place):
    run_small(place, max_steps=3)
    expected = weights(place / "run")
    run_small(place, max_steps=3, overwrite=True, gradient_checkpointing=True)
    for key, tensor in weights(place / "run").items():
        torch.testing.assert_close(tensor, expected[key])


def test_general_pages_are_read_at_every_check(place):
    run_small(place, forgetting_dataset=str(place / "words" / "validation"))
    assert all("forgetting_cer" in event for event in events(place / "run", "evaluate"))


def test_training_ends_when_checks_get_no_better(place, monkeypatch):
    monkeypatch.setattr(loop.PageTrainer, "read_held_out", lambda self: {"cer": 0.5})
    summary = run_small(place, max_steps=40, eval_steps=2, early_stopping_patience=3)
    assert summary.steps == 8


def test_another_run_in_the_folder_is_refused(place, tmp_path):
    run_small(place, max_steps=1)
    with pytest.raises(TrainingError, match=r"--resume.*--overwrite") as caught:
        run_small(place, max_steps=1)
    assert caught.value.code is TrainingCode.OUTPUT_EXISTS
    with pytest.raises(TrainingError, match=r"another learning-rate") as caught:
        run_small(place, max_steps=1, learning_rate=1.0, resume=True)
    assert caught.value.code is TrainingCode.RESUME_MISMATCH
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(TrainingError, match=r"something else"):
        run_small(place, output_dir=tmp_path, overwrite=True)
    assert (tmp_path / "letter.txt").exists()


def test_a_resumed_run_with_other_pages_is_refused(place, tmp_path):
    run_small(place, max_steps=1)
    shutil.copytree(place / "words", tmp_path / "words")
    (tmp_path / "words" / "train" / "w010.txt").write_text("another")
    with pytest.raises(TrainingError, match=r"set of train pages"):
        run_small(place, max_steps=1, resume=True, dataset_name=str(tmp_path / "words"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--preset", "quality"], ["gpu_missing", "--preset smoke"]),
        (["--device", "cuda"], ["gpu_missing"]),
        (["--backend", "unsloth"], ["gpu_missing", "--backend peft"]),
        (["--use-qlora"], ["gpu_missing", "CUDA"]),
        (["--target-modules", "qproj"], ["target_unmatched", "q_proj (2)", "down_proj"]),
        (["--target-modules", "qkv_proj"], ["target_unmatched", "--train-vision"]),
        (["--max-length", "10"], ["no_samples", "--max-length"]),
        (["--model", "nowhere"], ["model_unusable"]),
        (["--mode", "tiny"], ["option_invalid", "gundam"]),
        (["--use-wandb"], ["package_missing", "pip install wandb"]),
        (["--batch-size", "none"], ["option_invalid", "whole number"]),
        (["--dataset-name", "nowhere"], ["source_missing"]),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(place, capsys, flags, words):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    options = {name: value for name, value in small_options(place).items() if name != "use_tensorboard"}
    given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["train", *given, "--no-use-tensorboard", *flags]) == 2
    printed = capsys.readouterr().err
    assert all(word in printed for word in words), printed
    assert "Traceback" not in printed


def test_broken_rows_are_left_out_and_named(place, tmp_path):
    shutil.copytree(place / "words", tmp_path / "words")
    (tmp_path / "words" / "train" / "w010.png").write_bytes(b"no picture")
    run_small(place, max_steps=1, dataset_name=str(tmp_path / "words"), max_broken_share=0.1)
    (note,) = events(place / "run", "data")
    assert "1 of 24 rows left out" in note["note"]
    assert "w010" in note["note"]
