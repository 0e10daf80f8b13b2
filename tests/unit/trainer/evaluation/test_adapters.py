"""`evaluate --adapter`: base and adapter on the same pages in one record, in this process and through a service."""

from __future__ import annotations

import json

import pytest

from shared.contract.identity import weights_revision
from shared.contract.publication import publish
from shared.contract.volume import AdapterVolume
from tests.support.adapters import announcement
from tests.support.lora import random_adapter, write_files
from tests.support.stub_service import stub_service
from tests.support.tiny_model import tiny_model
from trainer.cli import main
from trainer.evaluation.results import load_result


@pytest.fixture
def run(tmp_path):
    """A training run's folder with the adapter in `best`."""
    folder = tmp_path / "runs" / "letters" / "best"
    write_files(folder, random_adapter(tiny_model(), seed=1))
    return folder.parent


def evaluate(tmp_path, checkpoint, evaluation_set, *words):
    flags = f"--model {checkpoint} --data {evaluation_set} --max-new-tokens 8 --device cpu --json {tmp_path}/r.json"
    assert main(["evaluate", *flags.split(), "--pages", str(tmp_path / "p.jsonl"), *map(str, words)]) == 0
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    return load_result(tmp_path / "r.json"), [json.loads(line)["readings"] for line in lines]


def test_base_and_adapter_read_the_same_pages(tmp_path, checkpoint, evaluation_set, run, capsys):
    result, pages = evaluate(tmp_path, checkpoint, evaluation_set, "--adapter", run)
    table = capsys.readouterr().out
    adapter, base = result.readers
    assert (adapter.name, base.name) == ("letters", "tiny")
    assert result.adapter is adapter
    assert result.base is base
    assert base.details["weights"] == adapter.details["weights"] == weights_revision(checkpoint)
    assert len(adapter.details["adapter"]) == 64
    assert "adapter" not in base.details
    assert adapter.tiers.keys() == base.tiers.keys()
    assert len(adapter.tiers["line"].intervals["cer_change"]) == 2
    assert "cer_change" not in base.tiers["line"].intervals
    assert "errors gone" in table
    # The base beside an adapter reads as the base alone, and the adapter otherwise.
    _, alone = evaluate(tmp_path, checkpoint, evaluation_set)
    assert [readings[1]["text"] for readings in pages] == [readings[0]["text"] for readings in alone]
    assert [readings[0]["text"] for readings in pages] != [readings[0]["text"] for readings in alone]
    _, no_base = evaluate(tmp_path, checkpoint, evaluation_set, "--adapter", run / "best", "--no-base")
    assert [readings[0]["text"] for readings in no_base] == [readings[0]["text"] for readings in pages]
    assert len(no_base[0]) == 1
    assert str(tmp_path) not in (tmp_path / "r.json").read_text()


def test_a_published_adapter_is_measured_by_its_name(tmp_path, checkpoint, evaluation_set, run):
    volume = AdapterVolume(tmp_path / "volume")
    volume.root.mkdir()
    for _ in range(2):
        publish(volume, run / "best", announcement())
    words = ["--volume", volume.root, "--limit", "1"]
    newest, _ = evaluate(tmp_path, checkpoint, evaluation_set, "--adapter", "invoices", *words)
    first, _ = evaluate(tmp_path, checkpoint, evaluation_set, "--adapter", "invoices@1", *words)
    assert (newest.readers[0].name, first.readers[0].name) == ("invoices@2", "invoices@1")
    assert newest.readers[0].details["adapter"] == first.readers[0].details["adapter"]


def test_a_service_is_asked_for_both(tmp_path, evaluation_set):
    with stub_service() as (url, asked):
        words = f"--data {evaluation_set} --url {url} --adapter invoices@3 --json {tmp_path}/r.json --concurrency 3"
        assert main(["evaluate", *words.split()]) == 0
    adapter, base = load_result(tmp_path / "r.json").readers
    assert adapter.details["adapter"] == adapter.details["model_id"] == "invoices@3"
    assert "adapter" not in base.details
    assert adapter.details["concurrency"] == "3"
    assert sorted(asked) == ["", "", "", "invoices@3", "invoices@3", "invoices@3"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--no-base", "give --adapter"),
        ("--adapter {tmp}/none", "there is no adapter"),
        ("--adapter invoices@3", "--volume"),
        ("--adapter invoices@3 --volume {tmp}", "unknown_adapter"),
        ("--adapter {tmp}", "no PEFT folder"),
        ("--model {tmp}", "[model_unusable]"),
    ],
)
def test_mistakes_with_adapters_are_one_line(tmp_path, checkpoint, evaluation_set, capsys, words, message):
    flags = f"evaluate --model {checkpoint} --data {evaluation_set} {words.format(tmp=tmp_path)}"
    assert main(flags.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_adapter_of_another_base_is_refused_before_anything_is_read(tmp_path, evaluation_set, checkpoint, capsys):
    from tests.support.adapters import lora_tensors, write_peft

    other = write_peft(tmp_path / "other", tensors=lora_tensors(modules={"model.layers.9.q_proj": (2, 2)}))
    words = f"evaluate --model {checkpoint} --data {evaluation_set} --adapter {other}"
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert "not in the base model" in error
    assert "pages" not in error
