"""`evaluate --page-tests` from a file of tests to table, record and report, read by nano."""

from __future__ import annotations

import json

import pytest
from PIL import Image, ImageDraw, ImageFont

from trainer.cli import main
from trainer.evaluation.results import load_result, to_json

pytestmark = pytest.mark.integration

LINES = ["The lamp costs 12.50", "Thank you for your order"]
TESTS = [
    {"id": "lamp", "type": "present", "text": "The lamp costs"},
    {"id": "desk", "type": "present", "text": "The desk costs a lot"},
    {"id": "head", "type": "absent", "text": "Page 3 of 7"},
    {"id": "order", "type": "order", "before": "lamp costs", "after": "Thank you"},
    {"id": "table", "type": "table", "cell": "12.50", "left": "lamp"},
    {"id": "loop", "type": "baseline"},
    {"id": "formula", "type": "math", "math": "x^2"},
]


@pytest.fixture
def folder(tmp_path):
    image = Image.new("L", (480, 120), 255)
    font = ImageFont.load_default(28)
    ImageDraw.Draw(image).multiline_text((20, 16), "\n".join(LINES), font=font, fill=0, spacing=12)
    (tmp_path / "bench" / "pdfs").mkdir(parents=True)
    image.save(tmp_path / "bench" / "pdfs" / "shop.pdf", resolution=150)
    lines = [json.dumps({"pdf": "shop.pdf", "page": 1, **test}) for test in TESTS]
    (tmp_path / "bench" / "shop.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def test_nano_is_judged_by_a_file_of_tests(folder, capsys):
    words = ["evaluate", "--page-tests", f"{folder}/bench/shop.jsonl", "--device", "cpu", "--json", f"{folder}/r.json"]
    assert main([*words, "--html", f"{folder}/r.html", "--pages", f"{folder}/p.jsonl"]) == 0
    said = capsys.readouterr().out
    result = load_result(folder / "r.json")
    (reader,) = result.readers
    score = reader.page_tests
    transcript = json.loads((folder / "p.jsonl").read_text(encoding="utf-8"))
    assert transcript["readings"][0]["text"].split("\n") == LINES
    assert {kind: (rate.passed, rate.tests) for kind, rate in score.kinds.items()} == {
        "present": (1, 2), "absent": (1, 1), "order": (1, 1), "table": (0, 1), "baseline": (1, 1),
    }  # fmt: skip
    assert (score.overall.passed, score.overall.tests) == (4, 6)
    assert {failure.id: failure.reason for failure in score.failures}["table"] == "there is no table"
    assert (result.page_tests.files, result.page_tests.skipped) == (("shop",), {"math": 1})
    assert "1 of the kind math left out" in said
    assert to_json(result) == (folder / "r.json").read_text(encoding="utf-8")
    report = (folder / "r.html").read_text(encoding="utf-8")
    assert "Tests that nano failed: 2" in report
    assert "there is no table" in report
    assert "4 of 6" in report

    assert main(["evaluate", "--from-json", f"{folder}/r.json"]) == 0
    assert capsys.readouterr().out == said


def test_a_record_of_tests_alone_publishes_nothing(folder, capsys):
    (folder / "volume").mkdir()
    words = f"evaluate --page-tests {folder}/bench/shop.jsonl --add-baseline --json {folder}/r.json"
    assert main([*words.split(), "--max-new-tokens", "2", "--reading-layout", "page"]) == 0
    capsys.readouterr()
    publish = f"publish --from {folder}/bench --base shared/nano --volume {folder}/volume --name a"
    assert main([*publish.split(), "--evaluation", f"{folder}/r.json", "--base-evaluation", f"{folder}/r.json"]) == 2
    assert "page tests alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--page-tests {0}/none.jsonl", "option_invalid"),
        ("--page-tests {0}/bench/shop.jsonl --test-pages {0}/none", "there is no folder"),
        ("--page-tests {0}/bench/shop.jsonl --test-pages {0}/bench", "source_missing"),
        ("--test-pages {0}", "go with --page-tests"),
        ("--add-baseline", "go with --page-tests"),
    ],
)
def test_mistakes_are_said_before_a_model_is_loaded(folder, capsys, words, said):
    assert main(["evaluate", "--model", f"{folder}/none", *words.format(folder).split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
