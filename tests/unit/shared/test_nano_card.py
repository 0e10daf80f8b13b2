"""The model card tells what was measured, on the weights that ship."""

from __future__ import annotations

import json
from pathlib import Path

from shared.contract.calibration import FILE_NAME as CALIBRATION_FILE
from shared.contract.calibration import read_calibration
from shared.contract.identity import weights_revision
from shared.contract.prompts import Task
from shared.deepseek_ocr.nano_config import nano_config
from trainer.evaluation.card import record_path, table_of
from trainer.evaluation.results import load_result
from trainer.evaluation.table import markdown_table

CARD = Path(__file__).parents[3] / "shared" / "nano" / "README.md"


def test_the_cards_table_is_that_of_the_committed_record():
    record = record_path(CARD)
    result = load_result(record) if record.is_file() else None
    assert table_of(CARD.read_text(encoding="utf-8")) == markdown_table(result)


def test_the_record_is_of_the_weights_that_ship_and_of_committed_code():
    record = record_path(CARD)
    if not record.is_file():
        # Nothing measured, nothing claimed: the other test holds the card to that.
        return
    result = load_result(record)
    assert result.readers[0].details["weights"] == weights_revision(CARD.parent)
    assert not result.commit.endswith("-dirty")


def test_the_calibration_is_of_the_weights_that_ship():
    record = json.loads((CARD.parent / CALIBRATION_FILE).read_text(encoding="utf-8"))
    assert record["weights"] == weights_revision(CARD.parent)
    assert read_calibration(CARD.parent) is not None
    # What docs/confidence.md promises of drawn pages that it was not fitted to.
    assert all(each["ece_words"] <= 0.05 for each in record["sets"] if each["name"].startswith("calibration-"))


def test_the_weights_are_offered_for_the_tasks_that_the_card_names():
    tasks = json.loads((CARD.parent / "config.json").read_text(encoding="utf-8"))["tasks"]
    card = CARD.read_text(encoding="utf-8")
    assert [task for task in Task if f"(task `{task}`)" in card] == tasks == nano_config().tasks
