"""What a sweep varies: each dimension is an option of `train` with a range or a list of values.

Parses and checks the words of the command line. Knows neither Optuna nor runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from trainer.training.errors import TrainingCode, TrainingError
from trainer.training.options import TrainingOptions, make_options, option_fields, value_of

LOG_SUFFIX: Final = ":log"
FORM: Final = "NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C"
FIXED: Final = frozenset({
    "dataset_name", "eval_dataset_name", "forgetting_dataset", "output_dir", "device", "validation_share",
    "max_eval_samples", "max_broken_share", "image_column", "text_column", "task", "push_to_hub", "hub_model_id",
})  # fmt: skip
"""Options that decide what is measured, or where: trials that differ in them cannot be compared."""


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones if both are."""

    name: str
    low: float
    high: float
    is_whole: bool
    is_log: bool


@dataclass(frozen=True, slots=True)
class Choices:
    """A list of values as they were written; names within one value are joined by `+`."""

    name: str
    values: tuple[str, ...]


Dimension = Range | Choices


def parse_space(words: Sequence[str]) -> tuple[Dimension, ...]:
    """Parse dimensions.

    Args:
        words: one dimension each, such as `learning-rate=1e-5..1e-3:log`, `lora-rank=8,16` or
            `target-modules=q_proj+v_proj,q_proj+k_proj+v_proj+o_proj`.

    Returns:
        The dimensions in the same order.

    Raises:
        TrainingError: a word has another form, names an option that is unknown, fixed or named twice, or has a value
            that the option cannot have.
    """
    space = tuple(_dimension(word) for word in words)
    names = [each.name for each in space]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise _invalid(f"{twice.replace('_', '-')} is named twice", "give each option one --search")
    return space


def options_of(fixed: TrainingOptions, values: dict[str, Any]) -> TrainingOptions:
    """The options of one trial: the fixed ones, with `values` by name as the sampler chose them."""
    changed = {name: _value(name, value) for name, value in values.items()}
    return make_options(fixed.as_json(), changed)


def size_of(space: Sequence[Dimension]) -> int | None:
    """Number of combinations; None if a range has no end of them."""
    sizes = [len(each.values) if isinstance(each, Choices) else None for each in space]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def _dimension(word: str) -> Dimension:
    written, equals, text = word.partition("=")
    name = written.strip().removeprefix("--").replace("-", "_")
    if not equals or not text.strip():
        raise _invalid(f"--search {word!r} is not a dimension", f"write {FORM}")
    if name not in option_fields():
        make_options({written: text})  # names the nearest option
    if name in FIXED:
        raise _invalid(f"{written} cannot be searched: trials would not be comparable", "give it as a flag")
    low, dots, high = text.partition("..")
    if not dots:
        values = tuple(value.strip() for value in text.split(",") if value.strip())
        for value in values:
            make_options({name: _value(name, value)})
        return Choices(name, values)
    is_log = high.endswith(LOG_SUFFIX)
    return _range(name, low, high.removesuffix(LOG_SUFFIX), is_log=is_log)


def _range(name: str, low: str, high: str, *, is_log: bool) -> Range:
    ends = [value_of(name, text.strip()) for text in (low, high)]
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        raise _invalid(f"{name.replace('_', '-')} has no range", "list its values: NAME=A,B,C")
    if not ends[0] < ends[1] or (is_log and ends[0] <= 0):
        raise _invalid(
            f"{name.replace('_', '-')} is searched from {ends[0]} to {ends[1]}",
            "write the smaller end first, and nothing below or at 0 with :log",
        )
    for end in ends:
        make_options({name: end})
    return Range(name, ends[0], ends[1], all(isinstance(end, int) for end in ends), is_log)


def _value(name: str, value: Any) -> Any:
    """A value as options take it: texts of flags and of None, and names joined by `+`."""
    if not isinstance(value, str):
        return value
    default = option_fields()[name].default
    if isinstance(default, bool) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if isinstance(default, tuple):
        return value.replace("+", ",")
    return None if value.lower() == "none" else value


def _invalid(message: str, remedy: str) -> TrainingError:
    return TrainingError(TrainingCode.OPTION_INVALID, message, remedy)
