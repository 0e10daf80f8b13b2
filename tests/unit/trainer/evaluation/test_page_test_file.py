"""Files of page tests: what is read, and what is refused before anything is."""

from __future__ import annotations

import json

import pytest

from trainer.evaluation.page_test_file import NamedTest, PageName, load_page_tests, write_page_tests
from trainer.evaluation.page_tests import Absent, Baseline, Cell, Order, Present, derive_tests, plain
from trainer.evaluation.text_tables import Side
from trainer.training.errors import TrainingCode, TrainingError


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_every_field_of_the_format_is_read(tmp_path):
    page = {"pdf": "a/b.pdf", "page": 2, "checked": "verified", "url": "https://example.org"}
    path = write(
        tmp_path / "scans.jsonl",
        {**page, "id": "1", "type": "present", "text": "Total  **due**", "max_diffs": 2, "case_sensitive": False},
        {**page, "id": "2", "type": "absent", "text": "Page 3", "first_n": 40, "last_n": None},
        {**page, "id": "3", "type": "order", "before": "first", "after": "second", "max_diffs": 2},
        "",
        {**page, "id": "4", "type": "table", "cell": "4", "up": "price", "left": None, "right": "",
         "top_heading": "2020", "left_heading": "lamp", "max_diffs": 1, "ignore_markdown_tables": True},
        {**page, "id": "5", "type": "baseline", "max_length": 10, "max_length_skips_image_alt_tags": True,
         "max_repeats": 4, "check_disallowed_characters": False},
        {**page, "id": "6", "type": "math", "math": "x^2"},
        {"page": "c.png", "type": "baseline"},
    )  # fmt: skip
    found = load_page_tests([path])
    second = PageName("a/b.pdf", 2)
    assert found.tests == (
        NamedTest("1", "scans", second, Present("Total due", 2, is_case_sensitive=False)),
        NamedTest("2", "scans", second, Absent("Page 3", first_n=40)),
        NamedTest("3", "scans", second, Order("first", "second", 2)),
        NamedTest("4", "scans", second, Cell(
            "4", ((Side.UP, "price"),), ((Side.UP, "2020"), (Side.LEFT, "lamp")), 1, ignores_markdown=True
        )),
        NamedTest("5", "scans", second, Baseline(10, True, 4, False)),
        NamedTest("scans:8", "scans", PageName("c.png"), Baseline()),
    )  # fmt: skip
    assert found.skipped == {"math": 1}
    assert found.pages == (second, PageName("c.png"))


def test_samples_are_found_by_name(tmp_path):
    path = write(
        tmp_path / "t.jsonl",
        {"pdf": "a.pdf", "page": 2, "type": "present", "text": "two"},
        {"pdf": "a.pdf", "page": 1, "type": "present", "text": "one"},
        {"page": "b.png", "type": "present", "text": "b"},
    )
    found = load_page_tests([path])
    assert found.of_sample("a.pdf page 2") == (Present("two"),)
    assert found.of_sample("a.pdf page 1") == found.of_sample("a.pdf") == (Present("one"),)
    assert found.of_sample("b.png") == (Present("b"),)
    assert found.of_sample("c.png") == ()


def test_tests_made_of_a_truth_are_written_and_read(tmp_path):
    truth = "The lamp costs 12.50\nThank you for it\n| lamp | 12.50 |\n| desk | 9.00 |"
    made = derive_tests(truth)
    write_page_tests(tmp_path / "t.jsonl", {"a/b.png": made, "c.png": made[:1]})
    found = load_page_tests([tmp_path / "t.jsonl"])
    assert {type(test) for test in made} == {Present, Order, Cell}
    assert found.of_sample("a/b.png") == made
    assert found.of_sample("c.png") == made[:1]
    with pytest.raises(TypeError, match="not made of truths"):
        write_page_tests(tmp_path / "t.jsonl", {"a.png": [Baseline()]})


def test_baseline_is_added_where_it_is_missing_and_pages_can_be_limited(tmp_path):
    path = write(
        tmp_path / "t.jsonl",
        {"page": "a.png", "type": "present", "text": "a"},
        {"page": "b.png", "type": "baseline", "max_length": 3},
    )
    found = load_page_tests([path])
    assert [(each.id, each.file) for each in found.with_baseline().tests[2:]] == [("a.png_baseline", "baseline")]
    assert found.first_pages(1).tests == found.tests[:1]
    assert found.first_pages(None) == found


GOOD = {"page": "a", "type": "present", "text": "a"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "Expecting property name"),
        ("[]", "no JSON object"),
        pytest.param("[" * 100_000, "recursion", id="deep"),
        ('{"page": "a", "type": "present", "text": "\\ud800"}', "surrogates not allowed"),
        ({**GOOD, "type": "spelling"}, "'spelling' is none of present, absent"),
        ({"type": "present", "text": "a"}, "lacks 'page'"),
        ({"page": "a", "type": "present"}, "lacks 'text'"),
        ({"page": "a", "text": "a"}, "lacks 'type'"),
        ({**GOOD, "text": " "}, "text is ' '"),
        ({**GOOD, "text": 3}, "text is 3"),
        ({**GOOD, "text": "<br>"}, "no text"),
        ({**GOOD, "max_diff": 3}, "has no max_diff"),
        ({**GOOD, "max_diffs": -1}, "max_diffs is -1"),
        ({**GOOD, "max_diffs": "2"}, "max_diffs is '2'"),
        ({**GOOD, "first_n": 1.5}, "first_n is 1.5"),
        ({**GOOD, "case_sensitive": "no"}, "case_sensitive is 'no'"),
        ({"pdf": "a.pdf", "page": 0, "type": "present", "text": "a"}, "page is 0"),
        ({"page": "a", "type": "order", "before": "ab", "after": "abcdef", "max_diffs": 2}, "more than half"),
        ({"page": "a", "type": "table", "cell": "a", "left_header": "b"}, "has no left_header"),
    ],
)
def test_a_line_that_is_no_test_is_named(tmp_path, line, said):
    path = write(tmp_path / "tests.jsonl", "", line)
    with pytest.raises(TrainingError, match="line 2") as refused:
        load_page_tests([path])
    assert said in str(refused.value)
    assert refused.value.code is TrainingCode.OPTION_INVALID


def test_a_separator_of_lines_may_be_within_a_text(tmp_path):
    tests = [Present(f"before{sign}after") for sign in "\u2028\u2029\x85"]
    write_page_tests(tmp_path / "tests.jsonl", {"a.png": tests})
    assert load_page_tests([tmp_path / "tests.jsonl"]).of_sample("a.png") == tuple(
        Present(plain(test.text)) for test in tests
    )


def test_files_without_use_are_refused(tmp_path):
    with pytest.raises(TrainingError, match="cannot be read"):
        load_page_tests([tmp_path / "none.jsonl"])
    math = write(tmp_path / "math.jsonl", {"pdf": "a.pdf", "page": 1, "id": "1", "type": "math", "math": "x"})
    with pytest.raises(TrainingError, match="no test that can be judged; 1 of the kind math left out"):
        load_page_tests([math])
    twice = write(tmp_path / "twice.jsonl", {**GOOD, "id": "1"}, {**GOOD, "id": "1"})
    with pytest.raises(TrainingError, match="the id '1' is taken"):
        load_page_tests([twice])
    once = [write(tmp_path / name, {**GOOD, "id": "1"}) for name in ("a.jsonl", "b.jsonl")]
    assert [(each.file, each.id) for each in load_page_tests(once).tests] == [("a", "1"), ("b", "1")]
