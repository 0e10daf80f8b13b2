"""The three commands at the start of docs/training.md: from files as tools wrote them to an adapter on the volume."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from shared.contract.manifest import parse_manifest
from shared.contract.volume import AdapterVolume
from tests.support.pdf import make_pdf
from tests.support.programs import ROOT
from tests.support.training import write_checkpoint
from tests.support.transcriptions import write_page_xml
from trainer.cli import main
from trainer.data.prepare.manifest import load_manifest

TEXT = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").partition("## From your files")[2]
FOLDER, *COMMANDS = re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)[0].splitlines()
EXTRA = {
    "prepare": [],
    "train": ["--max-steps", "2", "--eval-steps", "2", "--max-eval-samples", "1", "--no-use-tensorboard"],
    # Two updates make nothing better; what is tried are the commands.
    "publish": ["--max-new-tokens", "4", "--force", "a test"],
}


def write_pdfs(folder: Path, count: int) -> None:
    """PDFs of a page each."""
    folder.mkdir()
    for number in range(count):
        text = " ".join(f"{letter}{number}" for letter in "abcdefghijklmn")
        (folder / f"{number:02d}.pdf").write_bytes(make_pdf([text], size_pt=(700, 100)))


@pytest.mark.parametrize(("kind", "write"), [("PAGE-XML", write_page_xml), ("PDF", write_pdfs)])
def test_files_become_an_adapter_on_the_volume(tmp_path, monkeypatch, capsys, kind, write):
    write(tmp_path / "letters", 16)
    write_checkpoint(tmp_path / "shared" / "nano")
    made, dash_p, volume = shlex.split(FOLDER)
    assert (made, dash_p) == ("mkdir", "-p")
    (tmp_path / volume).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPSYNTH_TRAINER_THREADS", "1")
    monkeypatch.setenv("DEEPSYNTH_TRAINER_DEVICE", "cpu")
    assert len(COMMANDS) == 3
    for line in COMMANDS:
        python, dash_m, trainer, *words = shlex.split(line)
        assert (python, dash_m, trainer) == ("python", "-m", "trainer")
        assert main([*words, *EXTRA[words[0]]]) == 0, f"{kind}: {line}\n{capsys.readouterr().err}"
    manifest = load_manifest(tmp_path / "sets" / "letters")
    assert (manifest["num_rows"], manifest["broken_rows"]) == (16, {})
    assert set(manifest["splits"]) == {"train", "validation", "test"}
    assert AdapterVolume(tmp_path / "adapters").resolve("letters").version == 1
    folder = tmp_path / "adapters" / "letters" / "1"
    proof = parse_manifest((folder / "manifest.json").read_bytes()).evaluation
    assert [(each.split, each.seen_pages) for each in proof.sets] == [("test", 0)]
    assert proof.num_pages == manifest["splits"]["test"]["num_samples"]
