"""What clients see of a job."""

from __future__ import annotations

from service.jobs.job import Job
from service.ocr.answer import to_page_error
from service.ocr.outcome import PageStatus
from service.schemas import JobAnswer, JobPage, JobSummary, WebhookAnswer


def to_job_answer(job: Job, ttl_s: float) -> JobAnswer:
    """A job with the progress of each page; `ttl_s` is how long it is kept after its end."""
    pages = [
        JobPage(page=page, status=None if status is None else status.value) for page, status in job.statuses.items()
    ]
    return JobAnswer(**dict(to_job_summary(job, ttl_s)), pages=pages)


def to_job_summary(job: Job, ttl_s: float) -> JobSummary:
    """A job as lists have it."""
    statuses = list(job.statuses.values())
    return JobSummary(
        id=job.id,
        state=job.state.value,
        name=job.name,
        model_id=job.request.model_id,
        task=job.request.task.value,
        created=int(job.created_s),
        started=None if job.started_s is None else int(job.started_s),
        ended=None if job.ended_s is None else int(job.ended_s),
        expires=None if job.ended_s is None else int(job.ended_s + ttl_s),
        num_pages=len(statuses),
        num_finished=len(statuses) - statuses.count(None),
        num_failed=statuses.count(PageStatus.FAILED),
        error=None if job.error is None else to_page_error(job.error),
        webhook=None
        if job.webhook is None
        else WebhookAnswer(url=job.webhook.url, status=job.webhook.status.value, attempts=job.webhook.num_attempts),
    )
