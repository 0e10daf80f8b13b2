"""`trainer merge`, `trainer export` and pushing what they wrote, as a person runs them."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from shared.contract.publication import publish
from shared.contract.volume import AdapterVolume
from shared.deepseek_ocr.loading import load_checkpoint
from tests.support.adapters import announcement
from tests.support.checkpoint_adapters import base_of, write_adapter
from tests.support.training import events, run_small, write_checkpoint, write_words
from tests.unit.trainer.publishing.test_hub import FakeHub
from trainer.cli import main
from trainer.commands import train
from trainer.publishing import hub, merging


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training run on words next to its base model in bfloat16; tests only read them."""
    folder = tmp_path_factory.mktemp("trained")
    write_checkpoint(folder / "model")
    write_words(folder / "words", 12)
    run_small(folder, max_steps=4, eval_steps=4)
    assert events(folder / "run", "finished")
    return folder / "run"


def test_a_run_is_merged_after_its_own_validation_pages_were_read_with_both(tmp_path, run, capsys):
    out = tmp_path / "merged"
    words = ["merge", "--adapter", str(run), "--out", str(out), "--device", "cpu", "--max-new-tokens", "8"]
    assert main([*words, "--dtype", "float32"]) == 0
    said = capsys.readouterr().out
    assert f"wrote {out}: 8 matrices changed, in float32" in said
    assert "checked: 3 of 3 pages read the same, texts differ by 0.00%" in said
    record = json.loads((out / "merge.json").read_text())
    assert record["base"] == {"model_id": "model", "revision": base_of(run.parent / "model").revision}
    assert record["adapter"]["name"] == "run"
    assert record["check"]["sets"][0]["pages"] == record["check"]["equal_pages"] == 3
    assert "Checked on 3 held-out pages" in (out / "README.md").read_text()
    assert str(run.parent) not in (out / "merge.json").read_text() + (out / "README.md").read_text()
    assert load_checkpoint(out).model_id == "merged"
    # A service is often another user than the trainer.
    modes = {path.stat().st_mode & 0o777 for folder in (out, run / "best") for path in folder.iterdir()}
    assert modes == {(out / "README.md").stat().st_mode & 0o777}
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_merge_that_spoils_the_adapter_leaves_no_folder(tmp_path, run, capsys, monkeypatch):
    whole = merging._merged
    # What goes wrong silently elsewhere: a scaling that is not the adapter's.
    monkeypatch.setattr(merging, "_merged", lambda module, weight, stored, adapter, rounding: whole(
        module, weight * 0, stored, adapter, rounding))  # fmt: skip
    words = ["merge", "--adapter", str(run), "--out", str(tmp_path / "out" / "merged"), "--device", "cpu"]
    assert main([*words, "--max-new-tokens", "8"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: the merged checkpoint")
    assert error.endswith("[merge_differs]")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_published_version_is_merged_into_the_base_that_its_manifest_names_alone(tmp_path, capsys):
    write_checkpoint(tmp_path / "model")
    write_words(tmp_path / "words", 8)
    (tmp_path / "volume").mkdir()
    folder = write_adapter(tmp_path / "trained", load_checkpoint(tmp_path / "model").model, 1)
    publish(AdapterVolume(tmp_path / "volume"), folder, announcement("words", base=base_of(tmp_path / "model")))
    words = ["merge", "--adapter", "words", "--volume", str(tmp_path / "volume"), "--out", str(tmp_path / "merged"),
             "--device", "cpu", "--max-new-tokens", "4", "--dtype", "float32", "--base"]  # fmt: skip
    assert main([*words, str(tmp_path / "model")]) == 2
    assert "name held-out pages with --data" in capsys.readouterr().err
    words += [str(tmp_path / "model"), "--data", str(tmp_path / "words"), "--split", "validation"]
    assert main(words) == 0
    assert json.loads((tmp_path / "merged" / "merge.json").read_text())["adapter"]["name"] == "words@1"

    other = tmp_path / "model" / "model.safetensors"
    tensors = load_file(other)
    save_file({key: tensor * 2 for key, tensor in tensors.items()}, other)
    words[words.index(str(tmp_path / "merged"))] = str(tmp_path / "again")
    assert main(words) == 2
    assert "[base_mismatch]" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_an_exported_adapter_is_what_peft_loads(tmp_path, run, capsys):
    out = tmp_path / "exported"
    assert main(["export", "--to", "peft", "--adapter", str(run), "--out", str(out)]) == 0
    assert f"wrote {out}: 8 adapted modules for model" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    loaded = PeftModel.from_pretrained(load_checkpoint(run.parent / "model").model, str(out))
    weights = {name: tensor for name, tensor in loaded.state_dict().items() if "lora_B" in name}
    assert len(weights) == 8
    assert all(torch.count_nonzero(tensor) for tensor in weights.values())
    assert str(run.parent) not in (out / "adapter_config.json").read_text()


def test_both_forms_are_pushed_from_their_folders(tmp_path, run, capsys, monkeypatch):
    fake = FakeHub()
    monkeypatch.setattr(hub, "HfApi", lambda: fake)
    for form in ("peft", "merged"):
        words = ["export", "--to", form, "--adapter", str(run), "--out", str(tmp_path / form), "--device", "cpu"]
        assert main([*words, "--max-new-tokens", "4", "--dtype", "float32"]) == 0
        assert main(["push", str(tmp_path / form), "--hub-model-id", f"team/{form}"]) == 0
        repository, title, files = fake.commits[-1]
        assert (repository, title) == (f"team/{form}", form)
        assert files == {path.name: path.read_bytes() for path in (tmp_path / form).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "merge.json"} <= files.keys()
    capsys.readouterr()
    assert main(["push", str(run.parent / "words"), "--hub-model-id", "team/x"]) == 2
    assert "is not what `trainer merge` or `trainer export` wrote" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "reinforce"])
def test_both_ways_of_training_push_where_asked_to(tmp_path, run, monkeypatch, command):
    if command == "reinforce":
        pytest.importorskip("trl")
    fake = FakeHub()
    monkeypatch.setattr(hub, "HfApi", lambda: fake)
    words = (
        f"--model {run.parent}/model --dataset-name {run.parent}/words --init-from {run} --output-dir {tmp_path}/more"
    )
    rest = "--max-steps 1 --batch-size 2 --max-new-tokens 4 --device cpu --push-to-hub --hub-model-id team/more"
    assert main([command, *words.split(), *rest.split()]) == 0
    repository, _, files = fake.commits[-1]
    assert repository == "team/more"
    assert files["adapter_model.safetensors"] == (tmp_path / "more" / "best" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(("rank", "said"), [("0", "trained\n"), ("1", "")])
def test_of_several_processes_the_first_alone_says_and_pushes_what_was_trained(
    tmp_path, run, capsys, monkeypatch, rank, said
):
    (tmp_path / "best").symlink_to(run / "best")
    fake = FakeHub()
    monkeypatch.setattr(hub, "HfApi", lambda: fake)
    monkeypatch.setattr(train, "run_options", lambda *_, **__: "trained")
    monkeypatch.setenv("RANK", rank)
    words = ["train", "--dataset-name", "d", "--output-dir", str(tmp_path), "--device", "cpu"]
    assert main([*words, "--push-to-hub", "--hub-model-id", "team/more"]) == 0
    assert capsys.readouterr().out.startswith(said)
    assert len(fake.commits) == (rank == "0")
    assert main(words) == 0
    assert capsys.readouterr().out == said
