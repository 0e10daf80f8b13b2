"""What a sweep varies, as it is written on the command line."""

from __future__ import annotations

import pytest

from trainer.sweeping.space import Choices, Range, options_of, parse_space, size_of
from trainer.training.errors import TrainingError
from trainer.training.options import make_options


def test_ranges_and_lists_are_told_apart_and_whole_numbers_stay_whole():
    space = parse_space(
        ["learning-rate=1e-5..1e-3:log", "lora_rank=4..64", "--lora-alpha=8,16", "use-rslora=true,false"]
    )
    assert space == (
        Range("learning_rate", 1e-5, 1e-3, is_whole=False, is_log=True),
        Range("lora_rank", 4, 64, is_whole=True, is_log=False),
        Choices("lora_alpha", ("8", "16")),
        Choices("use_rslora", ("true", "false")),
    )
    assert (size_of(space), size_of(space[2:])) == (None, 4)


def test_chosen_values_become_options():
    fixed = make_options({"dataset_name": "d", "batch_size": 2})
    values = {"target_modules": "q_proj+v_proj", "use_rslora": "true", "max_steps": "none", "learning_rate": 0.5}
    options = options_of(fixed, values)
    assert (options.target_modules, options.use_rslora, options.max_steps) == (("q_proj", "v_proj"), True, None)
    assert (options.learning_rate, options.batch_size, options.dataset_name) == (0.5, 2, "d")


@pytest.mark.parametrize(("words", "message"), [
    (["learning-rate"], "is not a dimension"),
    (["learning-rat=1,2"], "did you mean learning_rate"),
    (["dataset-name=a,b"], "would not be comparable"),
    (["lora-rank=8,x"], "whole number"),
    (["lora-rank=8..4"], "smaller end first"),
    (["weight-decay=0..1:log"], "nothing below or at 0"),
    (["lora-dropout=0..2"], "below 1"),
    (["backend=auto..peft"], "has no range"),
    (["lora-rank=4,8", "lora_rank=16"], "named twice"),
])  # fmt: skip
def test_what_cannot_be_searched_is_said(words, message):
    with pytest.raises(TrainingError, match=message):
        parse_space(words)
