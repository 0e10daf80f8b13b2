"""What the service knows of each version of an adapter, and the words for where a version stands.

Plain records; the decisions over them are `choosing`'s and `guard`'s, their lives `catalog`'s.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from service.adapters.rollback import Outcome
from shared.contract.identity import AdapterRef
from shared.contract.refusals import Reason
from shared.contract.verification import VerifiedAdapter


class VersionState(StrEnum):
    """Where a version stands in this service."""

    SEEN = "seen"
    VERIFIED = "verified"
    LOADED = "loaded"
    ACTIVE = "active"
    DRAINING = "draining"
    UNLOADED = "unloaded"
    REFUSED = "refused"


class ServiceReason(StrEnum):
    """Why a version is refused beyond what the contract has words for."""

    CANARY_FAILED = "canary_failed"
    OPERATOR = "refused_by_operator"
    ROLLED_BACK = "rolled_back"


REFUSAL_REASONS = tuple(str(reason) for reason in (*Reason, *ServiceReason))
"""Every reason that a refusal may have; labels of a metric."""
LIFTABLE = frozenset(str(reason) for reason in ServiceReason)
"""Refusals that are not about the folder; pinning the version takes them back."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a version is not served; the reason is for everybody, the detail for the log and the operator."""

    reason: str
    detail: str = ""


@dataclass(slots=True)
class AdapterVersion:
    """One version, as far as this service has dealt with it."""

    reference: AdapterRef
    copy: VerifiedAdapter | None = None
    """The private copy that passed every check but running; None before, and after it was dropped."""
    weights_sha256: str | None = None
    """Of the copy, also of one that was dropped: a version never has other weights."""
    has_passed: bool = False
    """Whether it has been loaded and has read the canary page."""
    refusal: Refusal | None = None
    fault: str | None = None
    """What kept it from being prepared the last time; it will be tried again."""
    retry_at_s: float = 0.0
    num_faults: int = 0
    num_losses: int = 0
    """Engines lost while it was loaded or read the canary page."""
    seen_at_s: float = 0.0
    stages_s: dict[str, float] = field(default_factory=dict)
    """Seconds that each stage of making it resident took."""
    outcomes: deque[Outcome] = field(default_factory=deque)
    """How its newest pages ended."""
    num_pages: int = 0

    @property
    def is_ready(self) -> bool:
        """Whether it may be read with as soon as it sits in a slot."""
        return self.has_passed and self.copy is not None and self.refusal is None

    @property
    def model_id(self) -> str:
        """`name@version`."""
        return str(self.reference)
