"""Every row is in the set or named, whatever a source does; rows that teach a model to invent are counted."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tests.support.page_sources import LONG, drawn, write_pages
from trainer.cli import main
from trainer.data.errors import DataCode, DataError
from trainer.data.prepare.conversion import ReadConverter
from trainer.data.prepare.manifest import load_manifest
from trainer.data.prepare.request import PrepareRequest
from trainer.data.prepare.run import prepare
from trainer.data.prepare.shards import SetFormat
from trainer.data.sources.columns import Columns
from trainer.data.sources.folder import FolderSource
from trainer.data.sources.splits import SplitShares


class ForgetfulSource(FolderSource):
    """Loses its third row, and still says that it has it."""

    def read_shard(self, shard):
        yield from (row for row in super().read_shard(shard) if row.number != 3)


def run(source, out, **options):
    converter = ReadConverter(Columns().resolved(source.columns), source.image_root)
    return prepare(source, converter, PrepareRequest(out, shares=SplitShares(0.4), **options))


@pytest.mark.parametrize("form", list(SetFormat))
@pytest.mark.parametrize("step_rows", [4, 1000])
def test_a_source_that_loses_a_row_ends_the_run(tmp_path, form, step_rows):
    folder = write_pages(tmp_path / "in", 12)
    with pytest.raises(DataError, match="of 12 rows 11 were read, 11 are in the set and 0 are named") as refused:
        run(ForgetfulSource(folder), tmp_path / "set", form=form, step_rows=step_rows)
    assert refused.value.code is DataCode.ROWS_LOST
    assert not (tmp_path / "set").exists()
    summary = run(FolderSource(folder), tmp_path / "set", form=form, step_rows=step_rows)
    assert summary.manifest["num_rows"] == 12


@pytest.mark.parametrize("form", list(SetFormat))
def test_a_file_of_the_set_that_lacks_a_row_ends_the_run(tmp_path, form, monkeypatch):
    from trainer.data.prepare import shards

    written = shards.ParquetShard.add if form is SetFormat.PARQUET else shards.TarShard.add

    def add(self, sample):
        if sample.row != 5:
            written(self, sample)

    kind = shards.ParquetShard if form is SetFormat.PARQUET else shards.TarShard
    monkeypatch.setattr(kind, "add", add)
    with pytest.raises(DataError, match=r"rows 5\)") as refused:
        run(FolderSource(write_pages(tmp_path / "in", 12)), tmp_path / "set", form=form)
    assert refused.value.code is DataCode.ROWS_LOST


def test_a_run_that_goes_on_accounts_for_all_rows(tmp_path):
    folder = write_pages(tmp_path / "in", 12)
    stopped = RuntimeError("the power fails")

    def report(done, _):
        if done == 9:
            raise stopped

    source = FolderSource(folder)
    converter = ReadConverter(Columns().resolved(source.columns), source.image_root)
    request = PrepareRequest(tmp_path / "set", shares=SplitShares(0.4), step_rows=4)
    with pytest.raises(RuntimeError, match="power"):
        prepare(source, converter, request, progress=report)
    assert prepare(source, converter, request).manifest["num_rows"] == 12


@pytest.mark.parametrize("step", ["1000", "5"])
def test_pages_that_teach_a_model_to_invent_are_counted_and_named(tmp_path, capsys, step):
    folder = write_pages(tmp_path / "in", 10)
    Image.new("L", (620, 160), 255).save(folder / "blank.png")
    (folder / "blank.txt").write_text("Words that are nowhere on this page")
    drawn("3").save(folder / "q03.png")
    (folder / "q03.txt").write_text("Quite another text for the same picture")
    words = ["--validation-share", "0", "--rows-per-file", step, "--out", str(tmp_path / "set")]
    assert main(["prepare", str(folder), *words]) == 0
    assert "to look at, in doubtful-rows.jsonl: 1 blank_image, 1 other_text" in capsys.readouterr().out
    manifest = load_manifest(tmp_path / "set")
    assert manifest["doubtful_rows"] == {"blank_image": 1, "other_text": 1}
    assert manifest["splits"]["train"]["num_samples"] == 12
    named = [json.loads(line) for line in (tmp_path / "set" / "doubtful-rows.jsonl").read_text().splitlines()]
    assert [row["name"] for row in named] == ["blank.png", "q03.png"]
    card = (tmp_path / "set" / "README.md").read_text()
    assert "| blank_image | 1 |" in card


def test_a_sound_set_has_no_doubts(tmp_path, capsys):
    folder = write_pages(tmp_path / "in", 8)
    for number in range(2):  # the same page twice says the same
        drawn("0").save(folder / f"again{number}.png")
        (folder / f"again{number}.txt").write_text(f"{LONG} 0")
    assert main(["prepare", str(folder), "--validation-share", "0", "--out", str(tmp_path / "set")]) == 0
    assert "to look at" not in capsys.readouterr().out
    assert "Rows to look at" not in (tmp_path / "set" / "README.md").read_text()
