"""Settings of the trainer: defaults, types, misspellings."""

from __future__ import annotations

import pytest

from trainer.config import SettingsError, TrainerSettings, load_settings


def test_an_empty_environment_gives_the_defaults():
    assert load_settings({"PATH": "/bin", "DEEPSYNTH_PORT": "1"}) == TrainerSettings("auto", 0, "tesseract")
    assert load_settings({}).num_threads >= 1


def test_variables_become_settings():
    given = {"DEEPSYNTH_TRAINER_DEVICE": "cuda:1", "DEEPSYNTH_TRAINER_THREADS": "3"}
    assert load_settings(given) == TrainerSettings("cuda:1", 3)
    assert load_settings(given).num_threads == 3


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DEEPSYNTH_TRAINER_DEVISE", "cpu", "did you mean DEEPSYNTH_TRAINER_DEVICE"),
        ("DEEPSYNTH_TRAINER_DEVICE", "gpu", "cuda:N"),
        ("DEEPSYNTH_TRAINER_THREADS", "many", "whole number"),
        ("DEEPSYNTH_TRAINER_THREADS", "-1", "0 or more"),
    ],
)
def test_wrong_variables_are_refused_by_name(name, value, message):
    with pytest.raises(SettingsError, match=message):
        load_settings({name: value})
