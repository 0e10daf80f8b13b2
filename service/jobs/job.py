"""A job: a document that is read in the background, and what is known of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from service.errors import DeepSynthError
from service.ocr.arrangement import AS_READ, Arrangement
from service.ocr.outcome import PageStatus
from service.ocr.request import OcrRequest


class JobState(StrEnum):
    """Life of a job. A cancelled one is erased, so there is no state for it."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    """No page could be read; otherwise the job is done, and its document partial."""


ENDED = (JobState.DONE, JobState.FAILED)


class WebhookStatus(StrEnum):
    """Of the message about a job's end."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    FAILED = "failed"
    """Given up, or refused by the setting at the time of sending."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where a job's end is announced."""

    url: str
    status: WebhookStatus = WebhookStatus.WAITING
    num_attempts: int = 0


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be stored."""

    id: str
    owner: str | None
    """From `owner_of`; None: anyone who knows the id."""
    name: str
    """The file's, safe to show."""
    request: OcrRequest
    pages: tuple[int, ...]
    """Numbers of the pages to read."""
    format_name: str | None
    """Output format of the result where a request for it names none."""
    receive_s: float
    """How long the upload took."""
    created_s: float
    """Seconds since 1970, as all times of jobs."""
    webhook_url: str | None
    wanted: Arrangement = AS_READ
    """How its client wants the text."""


@dataclass(frozen=True, slots=True)
class Job:
    """A stored job."""

    id: str
    owner: str | None
    state: JobState
    name: str
    request: OcrRequest
    """Its model is `name@version` once reading has begun."""
    format_name: str | None
    receive_s: float
    created_s: float
    started_s: float | None
    ended_s: float | None
    error: DeepSynthError | None
    """Why no page could be read."""
    num_fruitless: int
    """How often reading was begun since a page was last finished."""
    webhook: Webhook | None
    statuses: Mapping[int, PageStatus | None]
    """Of each page; None until it is finished."""
    wanted: Arrangement = AS_READ
    """How its client wants the text."""

    @property
    def has_ended(self) -> bool:
        """Whether no page is to be read any more."""
        return self.state in ENDED

    @property
    def unread(self) -> tuple[int, ...]:
        """Pages that are not finished."""
        return tuple(page for page, status in self.statuses.items() if status is None)


def owner_of(*marks: str | None) -> str | None:
    """Who a request is from: the SHA-256 of what tells clients apart, such as a key; None if there is nothing."""
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest() if any(marks) else None
