"""The shipped model is found by its name, in a checkout and anywhere else."""

from __future__ import annotations

import pytest

from shared.contract.shipped import SHIPPED_MODEL, local_model
from shared.deepseek_ocr.loading import find_checkpoint
from tests.support.nano import needs_nano


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / SHIPPED_MODEL).mkdir(parents=True)
    assert local_model(SHIPPED_MODEL) == SHIPPED_MODEL


@pytest.mark.parametrize("model", ["deepseek-ai/DeepSeek-OCR", "runs/mine"])
def test_other_names_are_left_alone(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    assert local_model(model) == model


@needs_nano
def test_it_is_found_from_any_folder_and_has_one_name(tmp_path, monkeypatch):
    at_home = find_checkpoint(SHIPPED_MODEL)
    monkeypatch.chdir(tmp_path)
    folder, name = find_checkpoint(SHIPPED_MODEL)
    assert folder.samefile(local_model(SHIPPED_MODEL))
    assert (folder / "config.json").is_file()
    assert name == at_home[1] == "nano"
