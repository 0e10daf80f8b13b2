"""Records, tables and cards: figures arrive as they were measured."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.support.evaluation import small_result
from trainer.evaluation.card import BEGIN, END, CardError, record_path, table_of, update_card, with_table
from trainer.evaluation.results import ResultError, from_json, to_json
from trainer.evaluation.table import NOT_MEASURED, markdown_table, rows, text_table


def test_a_record_survives_json_but_for_meaningless_digits():
    again = from_json(to_json(small_result()))
    assert again.readers[0].tiers["line"].cer == 0.012346
    assert to_json(again) == to_json(small_result())
    assert again.sets == small_result().sets
    assert again.machine == small_result().machine


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, "1" * 5000, "[]", "{}", json.dumps({"format": 99}), '{"format": 1, "date": "x"}']
)
def test_what_is_no_record_is_refused(text):
    with pytest.raises(ResultError):
        from_json(text)


def test_rows_keep_a_tiers_readers_together_and_leave_out_what_was_not_read():
    assert [row[:2] for row in rows(small_result())] == [
        ("line", "nano"),
        ("line", "Tesseract 5.3.0"),
        ("page", "nano"),
    ]
    assert rows(small_result())[0] == (
        "line", "nano", "40", "1.23 %", "1.11-1.36 %", "0.50 %", "1.22 %", "3.45 %", "55 %", "2.5 %", "0.43",
    )  # fmt: skip


def test_text_columns_line_up():
    lines = text_table(small_result()).splitlines()
    assert len(lines) == 4
    assert {line.index("%") for line in lines[1:]} == {lines[0].index("CER") + len("CER") - 1}


def test_the_markdown_table_says_what_it_was_measured_on():
    table = markdown_table(small_result())
    assert "| line | nano | 40 | 1.23 % |" in table
    assert "at commit `0123456789ab` on Processor X, 2 cores" in table
    assert "`held-out` (80 pages, sha256 `abababababab`)" in table
    assert "- nano: weights `cdcdcdcdcdcd`, dtype float32" in table
    assert "NFC" in table


def test_a_card_gets_the_table_and_its_record_and_keeps_the_rest(tmp_path):
    card = tmp_path / "README.md"
    card.write_text(f"# Card\n\nBefore.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    for _ in range(2):
        update_card(card, small_result())
    text = card.read_text()
    assert text.startswith("# Card\n\nBefore.\n")
    assert text.endswith(f"{END}\n\nAfter.\n")
    assert "old" not in text
    assert table_of(text) == markdown_table(from_json(record_path(card).read_text()))


def test_a_cards_figures_are_rounded_once(tmp_path):
    card, result = tmp_path / "README.md", small_result()
    card.write_text(f"{BEGIN}\n{END}")
    reader = result.readers[0]
    tiers = {**reader.tiers, "line": replace(reader.tiers["line"], wer=0.0325496)}
    update_card(card, replace(result, readers=[replace(reader, tiers=tiers)]))
    assert table_of(card.read_text()) == markdown_table(from_json(record_path(card).read_text()))


def test_a_card_without_markers_is_left_alone(tmp_path):
    card = tmp_path / "README.md"
    card.write_text(f"{END} {BEGIN}")
    with pytest.raises(CardError):
        update_card(card, small_result())
    assert not record_path(card).exists()
    assert with_table(f"{BEGIN}x{END}", NOT_MEASURED) == f"{BEGIN}\n\n{NOT_MEASURED}\n\n{END}"
