"""The numbers of nano's training: budget, optimiser, curriculum. Pure; owns no data and no device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TIERS = (
    "line", "few", "block", "half", "page", "crop", "sheet", "mosaic", "court", "invoice", "table", "blank", "pdf-page",
    "pdf-cut", "lines",
)  # fmt: skip
PDF_TIERS = frozenset({"pdf-page", "pdf-cut"})
"""Tiers that need pages of PDFs; a run without them goes without these."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One run of nano's training.

    A run is bounded by time, because the device is: the schedule and the curriculum follow the share of
    `budget_s` that has passed, so a slower machine sees fewer samples but the same shape of run.
    """

    budget_s: float = 1500.0
    max_steps: int = 1_000_000
    """Ends a run, and its schedule, earlier than the budget."""
    learning_rate: float = 5e-4
    matrix_learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup_steps: int = 150
    decay_share: float = 0.35
    """Last share of the run over which the learning rate falls linearly to zero."""
    views_per_batch: int = 96
    """Views (640 px squares) that each step encodes; pages of several tiles fill it with fewer pages."""
    band_share: float = 0.75
    """Share of batches of low views that are encoded without most of their padding, as a CPU reads them, and so hold
    more of them. The others are encoded whole, as on a GPU."""
    gradient_clip: float = 1.0
    router_loss_weight: float = 0.01
    spotting_loss_weight: float = 0.2
    draft_loss_weight: float = 0.1
    """Little, as the decoder feels it as well; the head's own steps do not depend on it."""
    draft_alone: bool = False
    """Whether the draft head learns alone, for weights that stay as they are."""
    mild_share: float = 0.5
    """Share of batches that are degraded less than the curriculum says, down to not at all."""
    token_noise: float = 0.03
    """Share of the answer's tokens that the decoder is fed wrongly, so that it finds its place by looking."""
    max_reuse: int = 6
    """Uses of a rendered page, each with fresh degradation, before it leaves the pool."""
    start: float = 0.0
    """Share of the curriculum that earlier runs have covered; a run that carries on starts at 1."""
    begin: float = 0.0
    """Share of the schedule that lies behind: where a run went on from was cut short there."""
    average_decay: float = 0.998
    """Share of the mean of the weights so far that each step keeps."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """A knot of the curriculum; values between knots are interpolated."""

    at: float
    tiers: Mapping[str, float]
    """Share of batches by tier."""
    severity: float
    """Strength of the degradation, 0 (clean) to 1."""
    max_characters: int
    """Longest line that the `line` tier renders."""


LAST_MIX = {
    "lines": 0.40, "line": 0.17, "few": 0.06, "block": 0.16, "half": 0.015, "page": 0.01, "crop": 0.05, "sheet": 0.01,
    "mosaic": 0.015, "court": 0.01, "invoice": 0.015, "table": 0.015, "blank": 0.01, "pdf-page": 0.03, "pdf-cut": 0.03,
}  # fmt: skip

CURRICULUM = (
    Stage(0.00, {"line": 0.4, "few": 0.3, "block": 0.3}, 0.0, 40),
    Stage(0.10, {"line": 0.25, "few": 0.35, "block": 0.4}, 0.2, 90),
    Stage(0.30, {"line": 0.1, "few": 0.25, "block": 0.6, "half": 0.05}, 0.6, 90),
    Stage(0.60, {"line": 0.1, "few": 0.15, "block": 0.4, "half": 0.13, "page": 0.12, "crop": 0.1}, 1.0, 90),
    Stage(1.00, LAST_MIX, 1.0, 90),
)


def stage_at(progress: float) -> Stage:
    """The curriculum at `progress` (0 to 1), interpolated between its knots."""
    progress = min(max(progress, 0.0), 1.0)
    after = next((i for i, stage in enumerate(CURRICULUM) if stage.at >= progress), len(CURRICULUM) - 1)
    right = CURRICULUM[after]
    left = CURRICULUM[max(after - 1, 0)]
    span = right.at - left.at
    share = 1.0 if span == 0 else (progress - left.at) / span
    tiers = {t: (1 - share) * left.tiers.get(t, 0.0) + share * right.tiers.get(t, 0.0) for t in TIERS}
    return Stage(
        at=progress,
        tiers={t: weight for t, weight in tiers.items() if weight > 0},
        severity=(1 - share) * left.severity + share * right.severity,
        max_characters=round((1 - share) * left.max_characters + share * right.max_characters),
    )


def learning_rate_factor(step: int, progress: float, recipe: Recipe) -> float:
    """Warm-up by steps, then constant, then linear to zero over the last `decay_share` of the budget."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    cool = min(1.0, max(0.0, (1.0 - progress) / recipe.decay_share))
    return warm * cool
