"""Reports: what stands in them, that nothing from outside gets out of its place, and that they need nothing else."""

from __future__ import annotations

import dataclasses
import io
import json
import time
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from tests.support.evaluation import TableReader, small_result, write_set
from trainer.cli import main
from trainer.evaluation.results import to_json
from trainer.evaluation.run import evaluate
from trainer.evaluation.samples import load_set
from trainer.report.chart import Interval, Line, curves, intervals
from trainer.report.curves import read_curves, thinned
from trainer.report.difference import marked_difference
from trainer.report.page import report_page
from trainer.report.worst import load_worst, save_worst, with_images, worst_pages

PAGES = [("a.png", "line", "abcd"), ("b.png", "page", "<one> two"), ("c.png", "line", "efgh ij")]
GOOD = TableReader("good", {"a.png": "abcd", "b.png": "<one> two", "c.png": "efgh ij"})
BAD = TableReader("bad", {"a.png": "abxd", "b.png": "", "c.png": "efgh ij ij ij"}, unfinished=["c.png"])
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> https://example.org/x.js'
VOID = {"meta", "img", "line", "circle", "polyline"}


class Checked(HTMLParser):
    """Every element closed in its order; which there are, and what they point at."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def sample_set(tmp_path):
    return load_set(write_set(tmp_path / "held-out", PAGES))


@pytest.fixture
def run(tmp_path, sample_set):
    """A training run's folder with everything in it, every text of it hostile where it can be."""
    folder = tmp_path / "letters"
    folder.mkdir()
    adapter = TableReader(HOSTILE, BAD._texts, ["c.png"])
    adapter.details = {"adapter": "ab" * 32, "weights": "cd" * 32, "task": "free", "note": HOSTILE}
    base = TableReader("nano", {**GOOD._texts, "a.png": HOSTILE})
    base.details = {"weights": "cd" * 32, "task": "free"}
    result, pages = evaluate([dataclasses.replace(sample_set, name=HOSTILE)], [adapter, base], io.StringIO())
    (folder / "evaluation.json").write_text(to_json(result))
    save_worst(folder / "worst.jsonl", with_images(worst_pages(pages, 3), [adapter.name, base.name]))
    (folder / "run.json").write_text(json.dumps({"base_model": HOSTILE, "options": {"rank": 16, HOSTILE: [HOSTILE]}}))
    events = [{"event": "base", "cer": 0.9}]
    events += [{"event": "log", "step": step, "loss": 3 / step, "learning_rate": 1e-4} for step in range(1, 41)]
    events += [{"event": "evaluate", "step": step, "cer": 1 / step, "forgetting_cer": 0.02} for step in (10, 20, 40)]
    (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "lo')
    return folder


def test_a_runs_report_has_all_its_parts_and_loads_nothing(tmp_path, run, capsys):
    assert main(["report", str(run), "-o", str(tmp_path / "r.html")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path}/r.html\n"
    page = (tmp_path / "r.html").read_text()
    found = Checked(page)
    assert "<h1>letters</h1>" in page
    assert found.tags.count("svg") == 3, "rates, losses, error rates"
    assert found.tags.count("img") == 3
    assert found.tags.count("table") == 3
    assert "What &quot;&gt;&lt;script&gt;" in page, "the table of what the adapter changes"
    assert str(tmp_path) not in page
    for tag, name, value in found.attributes:
        assert name not in {"onerror", "onload", "onclick"}
        assert tag == "img" or name not in {"src", "href", "srcset"}, (tag, name)
        assert name != "src" or value.startswith("data:image/webp;base64,")
    assert not {"script", "iframe", "object", "link", "base", "form"} & set(found.tags)
    assert "default-src 'none'" in next(
        value for tag, name, value in found.attributes if tag == "meta" and name == "content"
    )


def test_those_who_do_not_see_get_words_for_every_picture(run):
    main(["report", str(run)])
    page = (run / "report.html").read_text()
    found = Checked(page)
    labels = [value for tag, name, value in found.attributes if tag == "svg" and name == "aria-labelledby"]
    identities = [value for _, name, value in found.attributes if name == "id"]
    assert len(identities) == len(set(identities))
    assert all(identity in identities for label in labels for identity in label.split())
    assert "held-out pages: 10.0 % at step 10, 2.50 % at step 40" in page
    assert all(value for tag, name, value in found.attributes if tag == "img" and name == "alt")
    assert ("html", "lang", "en") in found.attributes


def test_what_is_not_there_is_left_out(tmp_path, run):
    (run / "evaluation.json").unlink()
    (run / "worst.jsonl").unlink()
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Not measured yet" in page
    assert Checked(page).tags.count("svg") == 2
    (run / "log.jsonl").unlink()
    assert main(["report", str(run)]) == 2


def test_a_record_from_before_is_reported_too():
    page = report_page(small_result())
    found = Checked(page)
    assert found.tags.count("tr") == 4
    assert "ROUGE-1" not in page.partition("</table>")[0]
    assert "Base model" not in page, "Tesseract is no base"


BROKEN = {"worst.jsonl": "no pages of an evaluation", "evaluation.json": "not a result", "run.json": "not JSON"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("worst.jsonl", "{}\n", "has no pages of an evaluation"),
        (
            "worst.jsonl",
            json.dumps({"name": "a", "tier": "b", "truth": "", "image_url": "https://x/y.png", "readings": []}),
            "image of a format",
        ),
        ("evaluation.json", "{}", "not a result"),
        ("evaluation.json", '{"format": 0}', "error: the result has format 0"),
        ("run.json", "{", "not JSON"),
        *((name, "[" * 100_000, message) for name, message in BROKEN.items()),
        *((name, "\udcff", message) for name, message in BROKEN.items()),
    ],
)
def test_broken_files_are_said(run, capsys, name, content, message):
    (run / name).write_text(content, encoding="utf-8", errors="surrogateescape")
    assert main(["report", str(run)]) == 2
    assert message in capsys.readouterr().err


def test_worst_pages_come_first_and_right_ones_not_at_all(tmp_path, sample_set):
    _, pages = evaluate([sample_set], [BAD, GOOD], io.StringIO())
    assert [page.sample.name for page in worst_pages(pages, 2)] == ["b.png", "c.png"]
    kept = with_images(worst_pages(pages, 2), ["bad", "good"])
    # A separator of lines, which JSON need not escape.
    kept[0] = dataclasses.replace(kept[0], truth="before\u2028after")
    save_worst(tmp_path / "worst.jsonl", kept)
    assert load_worst(tmp_path / "worst.jsonl") == kept
    assert kept[0].readings[0].cer == 1.0
    _, pages = evaluate([sample_set], [GOOD], io.StringIO())
    assert worst_pages(pages, 2) == []


def test_differences_are_marked_letter_by_letter():
    assert marked_difference("a <b> c", "a <x> cd") == "a &lt;<del>b</del><ins>x</ins>&gt; c<ins>d</ins>"
    assert marked_difference("one\n two", "one two") == "one two"
    assert marked_difference("kitten", "sitting") == "<del>k</del><ins>s</ins>itt<del>en</del><ins>ing</ins>"
    assert marked_difference("one two", "one") == "one<del> two</del>"
    assert marked_difference("\u65e5\u672c\u8a9e", "\u65e5\u6728\u8a9e") == "\u65e5<del>\u672c</del><ins>\u6728</ins>\u8a9e"  # fmt: skip  # noqa: E501


def test_a_page_that_looped_is_compared_in_a_moment():
    truth = " ".join(f"word{number} of the page" for number in range(400))
    start_s = time.process_time()
    marked = marked_difference(truth, "the page and the page and " * 700)
    assert time.process_time() - start_s < 5
    assert "<ins>" in marked


def test_a_log_is_read_as_curves_and_a_resumed_run_counts_once(tmp_path):
    events = [
        {"event": "base", "cer": 0.5, "step": 0},
        {"event": "log", "step": 1, "loss": 4.0},
        {"event": "log", "step": 2, "loss": 3.0},
        {"event": "evaluate", "step": 2, "cer": 0.4},
        {"event": "log", "step": 3, "loss": float("nan")},
        {"event": "log", "step": 4, "loss": 9.0},
        {"event": "start", "step": 2},
        {"event": "log", "step": 3, "loss": 2.0},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + "[1]\n{")
    found = read_curves(tmp_path / "log.jsonl")
    assert found.loss == ((1, 4.0), (2, 3.0), (3, 2.0))
    assert found.base_cer == 0.5
    assert found.cer[-1] == (2, 0.4)
    assert read_curves(tmp_path / "none").loss == ()


def test_long_curves_are_thinned_to_means():
    points = tuple((float(step), float(step % 2)) for step in range(1000))
    few = thinned(points, 100)
    assert len(few) == 100
    assert all(value == 0.5 for _, value in few)
    assert thinned(points[:7], 100) == points[:7]


def test_pictures_are_drawn_for_single_and_equal_points():
    for points in ([(1.0, 0.0)], [(0.0, 2.0), (5.0, 2.0)], [(3.0, 1e-9)]):
        ET.fromstring(curves("x", "t", [Line("a & b", "first", points)], str, str))
    svg = intervals("y", "t", [Interval("<tier>", "first", 0.0, 0.0, 0.0)], str, str)
    assert "NaN" not in svg
    ET.fromstring(svg)


def test_an_evaluation_writes_a_runs_missing_parts(tmp_path, sample_set, run):
    for name in ("evaluation.json", "worst.jsonl"):
        (run / name).unlink()
    from tests.support.stub_service import stub_service

    with stub_service() as (url, _):
        words = f"evaluate --data {tmp_path}/held-out --url {url} --adapter letters@1 --out {run}"
        assert main(words.split()) == 0
    page = (run / "report.html").read_text()
    assert Checked(page).tags.count("svg") == 3
    assert "letters@1" in page
