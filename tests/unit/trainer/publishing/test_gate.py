"""`python -m trainer publish`: from a PEFT folder and two records to a version, or to the reason why not."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from service.adapters.base_revision import base_revisions
from shared.contract.identity import weights_revision
from shared.contract.manifest import TrainingData, parse_manifest
from shared.contract.volume import AdapterVolume
from shared.deepseek_ocr.checkpoint import save_checkpoint
from tests.support.adapters import lora_tensors, safetensors_bytes, write_peft
from tests.support.evaluation import tier_score
from tests.support.page_sources import write_pages
from tests.support.tiny_model import tiny_model
from trainer.cli import main
from trainer.data.prepare.manifest import training_part
from trainer.evaluation.results import EvaluationResult, ReaderResult, SetRecord, to_json

MODULES = {"model.layers.0.self_attn.q_proj": (12, 8), "model.layers.0.self_attn.v_proj": (6, 8)}


def record(cer=0.5, tiers=None, sha256="ab" * 32, *, change=None, pages=None, **details) -> EvaluationResult:
    scores = {"line": tier_score(cer), "page": tier_score(cer)} if tiers is None else tiers
    return EvaluationResult(
        date="2026-11-22T12:00:00+00:00",
        commit="0" * 40,
        machine={},
        versions={},
        sets=(pages or SetRecord("held-out", 80, sha256),),
        readers=(ReaderResult("nano", {"task": "free", **details}, scores, change),),
    )


def record_of_both(before=0.5, after=0.1, adapter="0" * 64) -> EvaluationResult:
    """As `evaluate --adapter` writes it."""
    both = (record(after, adapter=adapter).readers[0], record(before).readers[0])
    return dataclasses.replace(record(), readers=both)


@pytest.fixture
def base(tmp_path):
    """A checkpoint as far as publishing looks at one."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "deepseek_vl_v2"}))
    tensors = {f"{name}.weight": np.ones(shape, "<f4") for name, shape in MODULES.items()}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors | {"norm.weight": np.ones(8, "<f4")}))
    return folder


@pytest.fixture
def publish(tmp_path, base):
    """Run the command with a good adapter and good records, unless told otherwise."""
    (tmp_path / "volume").mkdir()
    adapter = write_peft(tmp_path / "trained")

    def run(*words, before=None, after=None, adapter=adapter, source="--adapter", records=True):
        (tmp_path / "before.json").write_text(to_json(before or record()))
        (tmp_path / "after.json").write_text(to_json(after or record(0.1)))
        flags = [source, str(adapter), "--volume", str(tmp_path / "volume"), "--name", "invoices"]
        if records:
            flags += ["--base-evaluation", f"{tmp_path}/before.json", "--evaluation", f"{tmp_path}/after.json"]
        if "--base" not in words:
            flags += ["--base", str(base)]
        return main(["publish", *flags, *words])

    return run


def manifest(tmp_path, version=1):
    return parse_manifest((tmp_path / "volume" / "invoices" / str(version) / "manifest.json").read_bytes())


def test_a_better_adapter_is_published_and_in_use(tmp_path, base, publish, capsys):
    assert publish("--trained-on-sha256", "cd" * 32, "--trained-on-samples", "100") == 0
    output = capsys.readouterr().out
    assert output.splitlines() == [
        "published invoices@1",
        "CER 50.00% of the base, 10.00% of the adapter",
        "measured on 80 pages of held-out; change -46.00 to -34.00 points",
        "in use: invoices@1",
    ]
    published = manifest(tmp_path)
    assert (published.base.model_id, published.base.revision) == ("tiny", weights_revision(base))
    assert published.evaluation.base.cer == pytest.approx(0.5)
    assert published.evaluation.adapter.tiers["page"].cer == pytest.approx(0.1)
    assert published.evaluation.sets[0].sha256 == "ab" * 32
    assert published.training_data.samples == 100
    assert published.code.version
    assert published.forced is None
    for file in (tmp_path / "volume" / "invoices" / "1").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()


def test_the_set_that_it_was_trained_on_is_named_by_its_folder(tmp_path, publish, capsys):
    prepared = tmp_path / "sets" / "mine"
    words = ["--validation-share", "0.3", "--out", str(prepared)]
    assert main(["prepare", str(write_pages(tmp_path / "pages", 12)), *words]) == 0
    assert publish("--trained-on", str(prepared)) == 0
    part = training_part(prepared)
    assert manifest(tmp_path).training_data == TrainingData(sha256=part.fingerprint, samples=part.num_samples)
    capsys.readouterr()
    assert publish("--trained-on", str(tmp_path / "none")) == 2
    assert "[set_corrupt]" in capsys.readouterr().err
    file = prepared / "data" / "train-00000.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert publish("--trained-on", str(prepared)) == 2
    assert "has changed" in capsys.readouterr().err


def test_no_activate_leaves_the_version_in_use(tmp_path, publish, capsys):
    publish()
    assert publish("--no-activate") == 0
    assert capsys.readouterr().out.endswith("in use: invoices@1\n")
    assert AdapterVolume(tmp_path / "volume").listing("invoices").versions == (1, 2)


@pytest.mark.parametrize(
    ("after", "words", "message"),
    [
        (record(0.5), [], "not_better"),
        (record(0.6), [], "not_better"),
        (record(0.48), [], "not_better: CER 48.00% against 50.00% of the base, wanted is at most 47.50%"),
        (record(0.3), ["--min-improvement", "0.5"], "wanted is at most 25.00%"),
        (record(tiers={"line": tier_score(0.1), "page": tier_score(0.53)}), [], "tier 'page' loses 3.00 points"),
    ],
)
def test_an_adapter_that_is_not_better_stays_out(tmp_path, publish, capsys, after, words, message):
    assert publish(*words, after=after) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "force" in error
    assert not (tmp_path / "volume" / "invoices").exists()


def test_a_base_without_errors_leaves_nothing_to_gain(publish, capsys):
    assert publish(before=record(0.0), after=record(0.0)) == 2
    error = capsys.readouterr().err
    assert "the base model makes no error on these pages" in error
    assert "wanted is" not in error


def test_a_margin_of_zero_still_asks_for_fewer_errors(publish):
    assert publish("--min-improvement", "0", after=record(0.5)) == 2
    assert publish("--min-improvement", "0", after=record(0.499, change=(-0.002, -0.0001))) == 0


HELD_OUT = SetRecord("held-out", 80, "ab" * 32, "test", 0)


@pytest.mark.parametrize(
    ("after", "words", "message"),
    [
        (record(0.4, change=(-0.21, 0.01)), [], "between -21.00 and +1.00 points, so there may be no gain"),
        (record(0.4, change=(-0.21, 0.0)), [], "no gain"),
        (record(0.45), [], "between -14.50 and +4.50 points"),
        (
            record(0.1, pages=dataclasses.replace(HELD_OUT, pages=19)),
            [],
            "19 pages are too few, wanted are at least 20",
        ),
        (record(0.1, pages=HELD_OUT), ["--min-pages", "81"], "80 pages are too few"),
        (record(0.1, pages=dataclasses.replace(HELD_OUT, seen_pages=3)), [], "3 of 80 pages were trained on"),
        (record(0.1, pages=dataclasses.replace(HELD_OUT, split="train")), [], "split train are for training"),
    ],
)
def test_what_proves_nothing_stays_out_unless_forced(tmp_path, publish, capsys, after, words, message):
    before = record(pages=after.sets[0])
    assert publish(*words, before=before, after=after) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "volume" / "invoices").exists()
    assert publish(*words, "--force", "a trial", before=before, after=after) == 0
    assert manifest(tmp_path).forced == "a trial"


def test_tiers_that_are_for_training_prove_nothing(publish, capsys):
    tiers = {"train": tier_score(0.1), "test": tier_score(0.1)}
    assert publish(before=record(tiers={name: tier_score(0.5) for name in tiers}), after=record(tiers=tiers)) == 2
    assert "split train" in capsys.readouterr().err


def test_the_manifest_says_what_the_proof_rests_on(tmp_path, publish):
    after = record(0.1, change=(-0.45, -0.31), pages=HELD_OUT, mode="base")
    assert publish("--min-pages", "30", before=record(pages=HELD_OUT, mode="base"), after=after) == 0
    proof = manifest(tmp_path).evaluation
    assert (proof.cer_change, proof.min_pages, proof.mode) == ((-0.45, -0.31), 30, "base")
    assert (proof.sets[0].split, proof.sets[0].seen_pages, proof.num_pages) == ("test", 0, 80)


def test_force_publishes_and_the_manifest_says_why(tmp_path, publish, capsys):
    assert publish("--force", "a trial on staging", after=record(0.6)) == 0
    assert "forced: a trial on staging" in capsys.readouterr().out
    assert manifest(tmp_path).forced == "a trial on staging"
    assert manifest(tmp_path).evaluation.adapter.cer == pytest.approx(0.6)
    assert publish("--force", "nobody measured", records=False) == 0
    assert manifest(tmp_path, 2).evaluation is None


def test_a_force_that_is_not_needed_is_not_kept(tmp_path, publish, capsys):
    assert publish("--force", "just to be sure") == 0
    assert "not needed" in capsys.readouterr().out
    assert manifest(tmp_path).forced is None


def test_an_adapter_made_elsewhere_is_imported(tmp_path, publish):
    elsewhere = write_peft(
        tmp_path / "elsewhere",
        dtype="BF16",
        base_model_name_or_path="/home/somebody/deepseek_ocr",
        target_modules="(?:.*?(?:language).*?(?:self_attn).*?(?:q_proj|v_proj).*?)",
    )
    (elsewhere / "training_args.bin").write_bytes(b"a pickle that stays where it is")
    assert publish(adapter=elsewhere, source="--from") == 0
    published = manifest(tmp_path)
    assert published.code.program == "trainer publish --from"
    assert published.lora.targets == ("q_proj", "v_proj")
    assert published.lora.dtype == "BF16"
    assert sorted(published.files) == ["adapter_config.json", "adapter_model.safetensors"]
    assert AdapterVolume(tmp_path / "volume").resolve("invoices").version == 1


def test_a_repository_is_named_with_its_commit(tmp_path, publish):
    assert publish("--base", "deepseek-ai/DeepSeek-OCR", "--base-revision", "0" * 40) == 0
    assert manifest(tmp_path).base.model_id == "deepseek-ai/DeepSeek-OCR"
    assert publish("--base", "deepseek-ai/DeepSeek-OCR", before=record(weights="ef" * 32)) == 0
    assert manifest(tmp_path, 2).base.revision == "ef" * 32


def test_a_repositorys_commit_is_that_of_its_download(tmp_path, publish, monkeypatch, capsys):
    commit, cache = "12" * 20, tmp_path / "hub" / "models--deepseek-ai--DeepSeek-OCR"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert publish("--base", "deepseek-ai/DeepSeek-OCR") == 2
    assert "--base-revision" in capsys.readouterr().err
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    (cache / "snapshots" / commit).mkdir(parents=True)
    (cache / "snapshots" / commit / "config.json").write_text("{}")
    assert publish("--base", "deepseek-ai/DeepSeek-OCR") == 0
    assert manifest(tmp_path).base.revision == commit
    assert base_revisions("deepseek-ai/DeepSeek-OCR") == {commit}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_records_that_say_what_they_are_about_are_held_to_it(tmp_path, base, publish, capsys):
    weights = weights_revision(base)
    mine = digest(tmp_path / "trained" / "adapter_model.safetensors")
    before, after = record(weights=weights), record(0.1, weights=weights, adapter=mine)
    assert publish(before=before, after=after) == 0
    capsys.readouterr()
    for wrong, message in [
        ({"after": record(0.1, weights=weights, adapter="0" * 64), "before": before}, "another adapter"),
        ({"after": record(0.1, weights="0" * 64, adapter=mine), "before": record()}, "other weights"),
        ({"after": after, "before": record(adapter=mine)}, "is about an adapter"),
        ({"after": record(0.1, weights="0" * 64), "before": before}, "other weights"),
    ]:
        assert publish(**wrong) == 2
        assert message in capsys.readouterr().err


def test_one_record_of_both_is_enough(tmp_path, publish):
    mine = digest(tmp_path / "trained" / "adapter_model.safetensors")
    (tmp_path / "both.json").write_text(to_json(record_of_both(adapter=mine)))
    assert publish("--evaluation", f"{tmp_path}/both.json", records=False) == 0
    published = manifest(tmp_path).evaluation
    assert (published.base.cer, published.adapter.cer) == pytest.approx((0.5, 0.1))


def test_a_record_without_its_base_is_refused(tmp_path, publish, capsys):
    (tmp_path / "alone.json").write_text(to_json(record(0.1, adapter="0" * 64)))
    assert publish("--evaluation", f"{tmp_path}/alone.json", records=False) == 2
    assert "base and adapter both" in capsys.readouterr().err


def test_a_run_brings_its_record_and_its_data(tmp_path, publish):
    run = tmp_path / "run"
    adapter = write_peft(run / "best")
    (run / "evaluation.json").write_text(to_json(record_of_both(adapter=digest(adapter / "adapter_model.safetensors"))))
    (run / "run.json").write_text(json.dumps({"data": {"fingerprint": "ef" * 32, "num_samples": 70}}))
    assert publish(adapter=run, records=False) == 0
    assert manifest(tmp_path).training_data == TrainingData(sha256="ef" * 32, samples=70)
    assert manifest(tmp_path).evaluation.adapter.cer == pytest.approx(0.1)
    assert publish(adapter=adapter, records=False) == 0
    (run / "run.json").write_text('{"data": {"fingerprint": 3}}')
    assert publish(adapter=run, records=False) == 2


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (record(sha256="00" * 32), "different pages"),
        (record(task="markdown"), "different task"),
        (record(mode="base"), "different mode"),
        (record(tiers={"line": tier_score(0.5)}), "different tiers"),
        (
            record(tiers={"line": tier_score(0.5), "page": dataclasses.replace(tier_score(0.5), pages=3)}),
            "different tiers",
        ),
    ],
)
def test_records_of_different_readings_cannot_be_compared(publish, capsys, before, message):
    assert publish(before=before) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (["--name", "In voices"], {}, "invalid_name"),
        (["--force", " "], {}, "needs a reason"),
        (["--trained-on-sha256", "ab" * 32], {}, "--trained-on-samples"),
        (
            ["--trained-on", "set", "--trained-on-sha256", "ab" * 32, "--trained-on-samples", "3"],
            {},
            "--trained-on, or",
        ),
        (["--trained-on-sha256", "xy", "--trained-on-samples", "3"], {}, "64 hex digits"),
        (["--base-evaluation", "before.json"], {"records": False}, "goes with --evaluation"),
        (["--data", "x"], {}, "not both"),
        (["--json", "x"], {}, "--data or --real"),
        (["--push-to-hub"], {}, "--hub-model-id"),
        ([], {"records": False}, "not_evaluated"),
        (["--base", "owner/name"], {}, "--base-revision"),
        (["--base-revision", "main"], {}, "no revision"),
        (["--max-rank", "2"], {}, "rank_too_large"),
        (["--volume", "/nowhere/at/all"], {}, "volume_unavailable"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_do(publish, capsys, words, options, message):
    assert publish(*words, **options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [["--min-improvement", "5"], ["--max-rank", "0"], ["--from", "x"]])
def test_flags_out_of_their_range_are_usage(publish, words):
    with pytest.raises(SystemExit) as left:
        publish(*words)
    assert left.value.code == 2


def test_an_import_needs_its_base_model(tmp_path, capsys):
    assert main(["publish", "--from", "x", "--volume", str(tmp_path), "--name", "a"]) == 2
    assert "--base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"model.layers.7.self_attn.q_proj": (12, 8), "model.layers.7.self_attn.v_proj": (6, 8)}, "unknown_module"),
        (MODULES | {"model.layers.0.self_attn.v_proj": (6, 16)}, "wrong_shape"),
    ],
)
def test_an_adapter_for_other_modules_than_the_bases_stays_out(tmp_path, publish, capsys, modules, message):
    other = write_peft(tmp_path / "other", tensors=lora_tensors(modules=modules))
    assert publish(adapter=other) == 2
    assert message in capsys.readouterr().err


def test_modules_of_other_architectures_are_left_to_the_service(tmp_path, base, publish):
    (base / "config.json").write_text(json.dumps({"model_type": "deepseek_vl_v2_2"}))
    other = write_peft(tmp_path / "other", tensors=lora_tensors(modules={"x.q_proj": (2, 2), "x.v_proj": (2, 2)}))
    assert publish(adapter=other) == 0


def test_a_base_that_cannot_be_read_is_said(base, publish, capsys):
    (base / "model.safetensors").write_bytes(b"torn")
    assert publish() == 2
    assert "cannot be read" in capsys.readouterr().err
    (base / "config.json").unlink()
    assert publish() == 2
    assert "no checkpoint" in capsys.readouterr().err


def test_what_killed_publishers_left_is_swept(tmp_path, publish):
    publish()
    (tmp_path / "volume" / "invoices" / ".trash-left").mkdir()
    publish()
    assert not (tmp_path / "volume" / "invoices" / ".trash-left").exists()


def test_what_peft_saved_is_published_and_loads_in_peft(tmp_path, publish):
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
    trained = get_peft_model(tiny_model(), config)
    trained.save_pretrained(str(tmp_path / "saved"))
    save_checkpoint(tiny_model(), tmp_path / "base")
    assert publish("--base", str(tmp_path / "base"), adapter=tmp_path / "saved") == 0
    loaded = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "volume" / "invoices" / "1"))
    weights = {name: tensor for name, tensor in trained.state_dict().items() if "lora_" in name}
    assert len(weights) == manifest(tmp_path).lora.num_tensors
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in weights.items())
