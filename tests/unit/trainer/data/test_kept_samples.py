"""`python -m trainer prepare --source samples`: corrections, or all kept pages, as a set to train on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from shared.contract.prompts import Task
from tests.support.page_sources import LONG, drawn, encoded
from tests.support.samples import SampleFolder
from trainer.cli import main
from trainer.data.prepare.manifest import load_manifest
from trainer.data.sources.columns import Columns
from trainer.data.sources.rejected_rows import RejectedRows
from trainer.data.sources.resolve import open_source
from trainer.data.sources.samples import PageSample, read_samples


@pytest.fixture
def kept(tmp_path: Path) -> SampleFolder:
    return SampleFolder(tmp_path / "samples")


def prepare(capsys: pytest.CaptureFixture[str], folder: Path, out: Path, *words: str) -> tuple[int, str]:
    status = main(["prepare", "--source", "samples", "--path", str(folder), "--out", str(out), *words])
    printed = capsys.readouterr()
    return status, printed.out + printed.err


def samples_of(folder: Path) -> list[PageSample]:
    return list(read_samples(open_source(str(folder)), Columns(), RejectedRows(0)))


def test_corrections_alone_become_a_set(tmp_path: Path, kept: SampleFolder, capsys: pytest.CaptureFixture[str]) -> None:
    digests = {kept.add(f"c{number}", correction=f"{LONG} {number}"): number for number in range(12)}
    for number in range(3):
        kept.add(f"u{number}")
    status, said = prepare(capsys, kept.folder, tmp_path / "set", "--validation-share", "0.3")
    assert status == 0, said
    assert "3 without a correction" in said
    samples = samples_of(tmp_path / "set")
    assert {sample.text for sample in samples} == {f"{LONG} {number}" for number in range(12)}
    assert {sample.images[0].pixels_sha256: int(sample.text.split()[-1]) for sample in samples} == digests
    manifest = load_manifest(tmp_path / "set")
    assert manifest["num_rows"] == sum(split["num_samples"] for split in manifest["splits"].values()) == 12
    assert manifest["request"]["samples"] == {"use": "corrected", "task": "free"}
    assert manifest["passed_over"] == {"without a correction": 3}


def test_all_samples_prefer_corrections(tmp_path: Path, kept: SampleFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(8):
        kept.add(f"u{number}", read=f"read {number}")
    kept.add("c", read="misread", correction="right")
    kept.add("n", read="")
    status, said = prepare(capsys, kept.folder, tmp_path / "set", "--samples", "all", "--validation-share", "0.4")
    assert status == 0, said
    assert {sample.text for sample in samples_of(tmp_path / "set")} == {*(f"read {n}" for n in range(8)), "right"}
    assert "1 without text" in said


def test_no_page_is_in_two_splits_whatever_its_text_becomes(
    tmp_path: Path, kept: SampleFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(20):
        kept.add(f"p{number}", correction=f"{LONG} {number}")
    assert prepare(capsys, kept.folder, tmp_path / "one", "--validation-share", "0.4")[0] == 0
    for number in range(20):
        kept.add(f"p{number}", correction=f"{LONG}, corrected once more, {number}")
    assert prepare(capsys, kept.folder, tmp_path / "two", "--validation-share", "0.4")[0] == 0
    splits = [
        {sample.images[0].pixels_sha256: sample.split for sample in samples_of(tmp_path / name)}
        for name in ("one", "two")
    ]
    assert splits[0] == splits[1]
    assert set(splits[0].values()) == {"train", "validation"}


def test_pages_of_one_text_in_two_splits_are_named(
    tmp_path: Path, kept: SampleFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(16):
        kept.add(f"copy {number}", correction=LONG)
    for number in range(16):
        kept.add(f"page {number}", correction=f"{LONG} {number}")
    status, said = prepare(capsys, kept.folder, tmp_path / "set", "--validation-share", "0.5")
    assert status == 0, said
    manifest = load_manifest(tmp_path / "set")
    named = [json.loads(line) for line in (tmp_path / "set" / "broken-rows.jsonl").read_text().splitlines()]
    written = sum(split["num_samples"] for split in manifest["splits"].values())
    assert manifest["num_rows"] == written + len(named) == 32
    assert {row["code"] for row in named} == {"duplicate_across_splits"}


def test_broken_samples_are_named_and_counted(
    tmp_path: Path, kept: SampleFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    digests = [kept.add(f"c{number}", correction=f"{LONG} {number}") for number in range(12)]
    pages = kept.folder / "pages"
    (pages / f"{digests[0]}.json").write_text("{")
    (pages / f"{digests[1]}.png").unlink()
    (pages / f"{digests[2]}.png").write_bytes(encoded(drawn("x"))[:60])
    kept.add("t", correction="text", is_thumbnail=True)
    words = ("--max-broken-share", "0.5", "--validation-share", "0.4")
    status, said = prepare(capsys, kept.folder, tmp_path / "set", *words)
    assert status == 0, said
    assert "1 kept as a thumbnail alone" in said
    named = [json.loads(line) for line in (tmp_path / "set" / "broken-rows.jsonl").read_text().splitlines()]
    assert {row["name"]: row["code"] for row in named} == {
        digests[0]: "row_unreadable", digests[1]: "image_missing", digests[2]: "image_unreadable",
    }  # fmt: skip
    manifest = load_manifest(tmp_path / "set")
    assert manifest["num_rows"] == sum(split["num_samples"] for split in manifest["splits"].values()) + 3 == 12


def test_tasks_are_not_mixed(tmp_path: Path, kept: SampleFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(8):
        kept.add(f"m{number}", correction=f"# {number}", task=Task.MARKDOWN)
        kept.add(f"f{number}", correction=f"plain {number}")
        kept.add(f"o{number}", correction=f"boxed {number}", task=Task.OCR)
    texts = {}
    for task in ("free", "markdown"):
        words = ("--samples-task", task, "--validation-share", "0.4")
        status, said = prepare(capsys, kept.folder, tmp_path / task, *words)
        assert status == 0, said
        texts[task] = {sample.text for sample in samples_of(tmp_path / task)}
    assert texts["markdown"] == {f"# {number}" for number in range(8)}
    assert texts["free"] == {f"{kind} {number}" for kind in ("plain", "boxed") for number in range(8)}


def test_each_reading_of_a_services_folder_is_audited_and_of_an_export_not(
    tmp_path: Path, kept: SampleFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    digests = [kept.add(f"c{number}", correction=f"{LONG} {number}") for number in range(8)]
    kept.add("u")
    export = tmp_path / "export"
    shutil.copytree(kept.folder / "pages", export / "pages")
    for number, folder in enumerate((kept.folder, export)):
        assert prepare(capsys, folder, tmp_path / f"set{number}", "--validation-share", "0.4")[0] == 0
    lines = [json.loads(line) for line in (kept.folder / "audit.jsonl").read_text().splitlines()]
    read = [line for line in lines if line["what"] == "read"]
    assert sorted(line["sha256"] for line in read) == sorted(digests)
    assert {line["who"] for line in read} == {"trainer prepare"}
    assert not (export / "audit.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--source", "samples"], "options_conflict"),
        (["--source", "samples", "--path", "SAMPLES", "more"], "options_conflict"),
        (["--source", "samples", "--path", "SAMPLES", "--convert-to-images"], "options_conflict"),
        (["--source", "samples", "--path", "SAMPLES", "--text-column", "text"], "options_conflict"),
        (["folder", "--path", "SAMPLES"], "options_conflict"),
        (["folder", "--samples", "all"], "options_conflict"),
        (["--source", "samples", "--path", "SAMPLES/pages"], "source_missing"),
        (["--source", "samples", "--path", "SAMPLES"], "source_empty"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    words: list[str], code: str, tmp_path: Path, kept: SampleFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    kept.add("uncorrected")
    given = [word.replace("SAMPLES", str(kept.folder)) for word in words]
    assert main(["prepare", *given, "--out", str(tmp_path / "set")]) == 2
    assert f"[{code}]" in capsys.readouterr().err
