"""Options of training by rewards, in addition to those of any run: typed, filled from flags, kept in `run.json`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from trainer.rewards.rewards import REWARDS
from trainer.training.errors import TrainingCode, TrainingError

LOSSES: Final = ("dapo", "grpo", "dr_grpo", "bnpo", "cispo")
"""TRL's names; `dapo` divides by the tokens of all answers of an update."""
DEFAULT_WEIGHTS: Final[Mapping[str, float]] = {"cer": 1.0, "tests": 0.5, "format": 0.2, "loop": 1.0, "invented": 0.3}


@dataclass(frozen=True, slots=True)
class RewardOptions:
    """How answers are drawn, judged and learnt from.

    Attributes:
        weights: of the rewards, by name.
        num_answers: to each page of an update.
        temperature: of drawing.
        loss: TRL's name of the loss.
        kl_weight: of the distance from the adapter that the run began with.
        page_tests: file of tests by page; None to make them of the true texts.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_WEIGHTS))
    num_answers: int = 8
    temperature: float = 1.0
    loss: str = "dapo"
    kl_weight: float = 0.0
    page_tests: Path | None = None

    def __post_init__(self) -> None:
        if not self.weights or all(weight == 0 for weight in self.weights.values()):
            raise _invalid("no reward has a weight", "give one, such as --rewards cer=1")
        if self.num_answers < 2:
            raise _invalid(f"num-answers is {self.num_answers}", "answers are compared with others: at least 2")
        if not self.temperature > 0:
            raise _invalid(f"temperature is {self.temperature}", "it has to be a positive number")
        if self.kl_weight < 0:
            raise _invalid(f"kl-weight is {self.kl_weight}", "it has to be 0 or more")

    def as_json(self) -> dict[str, Any]:
        """Plain values, for `run.json`."""
        tests = None if self.page_tests is None else str(self.page_tests)
        return asdict(self) | {"weights": dict(self.weights), "page_tests": tests}


def parse_weights(words: Sequence[str]) -> dict[str, float]:
    """Weights from words such as `cer=1`; a name alone is 1. Raises `TrainingError` for other names or weights."""
    weights: dict[str, float] = {}
    for word in (part for given in words for part in given.replace(",", " ").split()):
        name, equals, text = word.partition("=")
        if name not in REWARDS:
            near = difflib.get_close_matches(name, REWARDS, n=1)
            known = f"did you mean {near[0]}?" if near else f"known are {', '.join(REWARDS)}"
            raise TrainingError(TrainingCode.OPTION_UNKNOWN, f"there is no reward {name!r}", known)
        try:
            weights[name] = float(text) if equals else 1.0
        except ValueError as error:
            raise _invalid(f"the weight of {name} is {text!r}", "write NAME=NUMBER") from error
        if not 0 <= weights[name] < float("inf"):
            raise _invalid(f"the weight of {name} is {text}", "it has to be 0 or more")
    return weights


def _invalid(message: str, remedy: str) -> TrainingError:
    return TrainingError(TrainingCode.OPTION_INVALID, message, remedy)
