"""The command line from flags to files, on a checkpoint in miniature."""

from __future__ import annotations

import stat

import pytest

from shared.contract.identity import weights_revision
from tests.support.evaluation import write_set
from tests.support.page_sources import write_pages
from trainer.cli import main
from trainer.data.prepare.manifest import load_manifest
from trainer.evaluation.card import BEGIN, END, table_of
from trainer.evaluation.results import load_result
from trainer.evaluation.table import markdown_table


@pytest.fixture
def tesseract(tmp_path, monkeypatch):
    """A program that reads every page as "ab"."""
    program = tmp_path / "stub-tesseract"
    program.write_text('#!/bin/sh\ncase "$1" in --version) echo "tesseract 5.9.1";; *) echo ab;; esac\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("DEEPSYNTH_TRAINER_TESSERACT", str(program))


@pytest.mark.usefixtures("tesseract")
def test_an_evaluation_leaves_table_record_card_pages_and_report(tmp_path, evaluation_set, checkpoint, capsys):
    card = tmp_path / "card" / "README.md"
    card.parent.mkdir()
    card.write_text(f"# Card\n{BEGIN}\n{END}\n")
    words = f"evaluate --model {checkpoint} --data {evaluation_set} --tesseract --max-new-tokens 8 --device cpu"
    files = (
        f"--json {tmp_path}/r.json --pages {tmp_path}/p.jsonl --worst 2 --html {tmp_path}/w.html --update-card {card}"
    )
    assert main([*words.split(), *files.split()]) == 0
    table = capsys.readouterr().out
    result = load_result(tmp_path / "r.json")
    assert [reader.name for reader in result.readers] == ["tiny", "Tesseract 5.9.1"]
    assert result.readers[0].details["weights"] == weights_revision(checkpoint)
    # "ab" is right, against "cd" two edits; nine characters of the page hold neither letter.
    assert result.readers[1].tiers["line"].cer == 0.5
    assert result.readers[1].tiers["page"].cer == 1.0
    figures, words_found = table.split("\n\n")
    assert [line.split()[0] for line in figures.splitlines()] == ["tier", "line", "line", "page", "page"]
    # One of two lines was read right, and no word of the page.
    assert words_found.splitlines()[2].split() == ["line", "Tesseract", "5.9.1", "50.0", "50.0", "50.0", "50.0"]
    assert table_of(card.read_text()) == markdown_table(load_result(card.with_name("evaluation.json")))
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 3
    assert (tmp_path / "w.html").read_text().count('<section class="page"') == 2
    assert str(tmp_path) not in (tmp_path / "r.json").read_text()

    assert main(["evaluate", "--from-json", str(tmp_path / "r.json")]) == 0
    assert capsys.readouterr().out == table


def test_tiers_and_limit_choose_pages(tmp_path, evaluation_set, checkpoint):
    words = f"evaluate --model {checkpoint} --data {evaluation_set} --tiers line --limit 1 --max-new-tokens 2"
    assert main([*words.split(), "--json", str(tmp_path / "r.json")]) == 0
    (reader,) = load_result(tmp_path / "r.json").readers
    assert {tier: score.pages for tier, score in reader.tiers.items()} == {"line": 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate", "nothing to read"),
        ("evaluate --data {tmp}/none", "source_missing"),
        ("evaluate --data {tmp}/none --tiers line", "not an evaluation set"),
        ("evaluate --data {set} --split test", "--tiers"),
        ("evaluate --data {set} --model {tmp}/none/at/all", "neither a folder nor a repository"),
        ("evaluate --data {set} --url ftp://x", "not an HTTP URL"),
        ("evaluate --from-json {tmp}/none.json", "none.json"),
        ("evaluate --data {set} --tiers spiral", "no tier spiral"),
    ],
)
def test_users_mistakes_are_one_line_and_status_2(tmp_path, evaluation_set, capsys, words, message):
    assert main(words.format(tmp=tmp_path, set=evaluation_set).split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_tesseract_is_known_before_anything_is_read(tmp_path, evaluation_set, capsys, monkeypatch):
    monkeypatch.setenv("DEEPSYNTH_TRAINER_TESSERACT", "no-such-program")
    assert main(["evaluate", "--data", str(evaluation_set), "--model", str(tmp_path), "--tesseract"]) == 2
    assert "no-such-program" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "message"), [
    ("evaluate --json {0}/gone/r.json", "there is no folder {0}/gone to write r.json to"),
    ("evaluate --pages {0}/gone/p.jsonl", "there is no folder {0}/gone to write p.jsonl to"),
    ("evaluate --html {0}", "{0} is a folder"),
    ("evaluate --out {0}/file/run", "{0}/file/run cannot be written"),
    ("benchmark --json {0}/gone/rows.jsonl", "there is no folder {0}/gone"),
    ("calibrate --model {0} --report {0}/file/docs/report.md", "{0}/file/docs cannot be written"),
    ("publish --adapter {0} --volume {0} --name a --data {0} --json {0}/gone/r.json", "there is no folder {0}/gone"),
])  # fmt: skip
def test_where_results_go_is_looked_at_before_anything_is_read(tmp_path, capsys, words, message):
    """None of these has pages or an adapter: it would say so if it came to them."""
    (tmp_path / "file").write_text("")
    assert main(words.format(tmp_path).split()) == 2
    assert capsys.readouterr().err.startswith(f"error: {message.format(tmp_path)}")


def test_a_path_that_cannot_be_used_is_said_in_a_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "log.jsonl").write_text("")
    assert main(["report", str(tmp_path), "--output", f"{tmp_path}/file/report.html"]) == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path}/file/report.html: Not a directory; name a path that can be used\n"
    )


def test_every_step_of_nano_explains_itself(capsys):
    for step in ("fonts", "corpus", "evalset", "tokenizer", "train", "export"):
        with pytest.raises(SystemExit) as left:
            main(["nano", step, "--help"])
        assert left.value.code == 0
        assert "--out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tier", "said"), [("spiral=2", "no tier 'spiral'"), ("line", "not TIER=N"), ("line=0", "not")]
)
def test_tiers_to_draw_are_known_and_counted(capsys, tier, said):
    with pytest.raises(SystemExit):
        main(["nano", "evalset", "--data", "none", "--out", "none", "--tiers", tier])
    assert said in capsys.readouterr().err


def test_tables_of_truths_are_scored_unless_told_not_to(tmp_path, checkpoint, capsys):
    truth = "<table><tr><td>a</td><td>b</td></tr></table>"
    words = f"evaluate --model {checkpoint} --data {write_set(tmp_path / 'set', [('a.png', 'page', truth)])}"
    words += f" --max-new-tokens 2 --device cpu --json {tmp_path}/r.json"
    assert main(words.split()) == 0
    score = load_result(tmp_path / "r.json").readers[0].tiers["page"]
    assert (score.tables, score.teds, score.teds_structure) == (1, 0, 0)
    assert "TEDS" in capsys.readouterr().out
    assert main([*words.split(), "--no-teds"]) == 0
    assert load_result(tmp_path / "r.json").readers[0].tiers["page"].tables is None
    assert "TEDS" not in capsys.readouterr().out


def test_a_prepared_set_is_measured_by_split(tmp_path, checkpoint):
    pages = write_pages(tmp_path / "pages", 12)
    assert main(["prepare", str(pages), "--validation-share", "0.3", "--out", str(tmp_path / "set")]) == 0
    words = f"evaluate --model {checkpoint} --data {tmp_path}/set --max-new-tokens 2 --device cpu --json {tmp_path}/r"
    splits = load_manifest(tmp_path / "set")["splits"]
    assert main([*words.split(), "--worst", "1", "--html", str(tmp_path / "w.html")]) == 0
    result = load_result(tmp_path / "r")
    assert {tier: score.pages for tier, score in result.readers[0].tiers.items()} == {
        name: split["num_samples"] for name, split in splits.items()
    }
    assert result.sets[0].name == "set"
    assert "data:image/webp" in (tmp_path / "w.html").read_text()
    assert main([*words.split(), "--split", "validation", "--layout", "line", "--limit", "1"]) == 0
    (score,) = load_result(tmp_path / "r").readers[0].tiers.values()
    assert score.pages == 1
