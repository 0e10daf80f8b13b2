"""Records of an adapter's versions, and the names of their states. Plain data; the catalog owns the records."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from service.adapters.rollback import Outcome
from shared.contract.identity import AdapterRef
from shared.contract.prompts import Task
from shared.contract.refusals import Reason
from shared.contract.verification import VerifiedAdapter


class VersionState(StrEnum):
    """State of a version in this service."""

    SEEN = "seen"
    VERIFIED = "verified"
    LOADED = "loaded"
    ACTIVE = "active"
    DRAINING = "draining"
    UNLOADED = "unloaded"
    REFUSED = "refused"


class ServiceReason(StrEnum):
    """Reasons to refuse a version that the contract does not have."""

    CANARY_FAILED = "canary_failed"
    OPERATOR = "refused_by_operator"
    ROLLED_BACK = "rolled_back"


REFUSAL_REASONS = tuple(str(reason) for reason in (*Reason, *ServiceReason))
"""Every reason; labels of a metric."""
LIFTABLE = frozenset(str(reason) for reason in ServiceReason)
"""Refusals that are not about the files; pinning the version lifts them."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a version is not served; clients see the reason, operators and the log also the detail."""

    reason: str
    detail: str = ""


@dataclass(slots=True)
class AdapterVersion:
    """One version."""

    reference: AdapterRef
    copy: VerifiedAdapter | None = None
    """The verified private copy; None before verification and after the copy was dropped."""
    weights_sha256: str | None = None
    """Of the copy, kept after it was dropped: the weights of a version must not change."""
    task: Task | None = None
    """What it was evaluated for, as far as its manifest says so; None before verification."""
    has_passed: bool = False
    """Whether it has read the canary page."""
    refusal: Refusal | None = None
    fault: str | None = None
    """Why the last preparation failed; it will be tried again."""
    retry_at_s: float = 0.0
    num_faults: int = 0
    num_losses: int = 0
    """Engines lost while it was being loaded or read the canary page."""
    seen_at_s: float = 0.0
    stages_s: dict[str, float] = field(default_factory=dict)
    """Seconds per stage of its preparation."""
    outcomes: deque[Outcome] = field(default_factory=deque)
    """How its newest pages ended."""
    num_pages: int = 0

    @property
    def is_ready(self) -> bool:
        """Whether it may serve requests once it is loaded."""
        return self.has_passed and self.copy is not None and self.refusal is None

    @property
    def model_id(self) -> str:
        """`name@version`."""
        return str(self.reference)
