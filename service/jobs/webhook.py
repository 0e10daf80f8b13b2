"""Tells a client's server that its job has ended: a signed POST request to an origin that the operator has listed.

Headers and signature are those of Standard Webhooks (https://www.standardwebhooks.com), which has libraries to check
them. The message says how the job ended, and nothing that was read. No redirect is followed, no proxy or password is
taken from the environment, and the body of a response is not read.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import httpx

from service.errors import WebhookNotAllowedError
from service.jobs.answer import to_job_summary
from service.jobs.job import Job, WebhookStatus
from service.jobs.metrics import JobObserver
from service.jobs.origins import origin_of

TIMEOUT_S = 10.0
RETRY_AFTER_S = (5.0, 30.0, 120.0, 600.0, 3600.0)
"""Pauses between attempts."""
_JITTER = 0.2
_RETRIED = frozenset({408, 425, 429})
"""Besides all from 500."""


def sign(secret: bytes, message_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """The headers of a message."""
    signed = f"{message_id}.{timestamp_s}.".encode() + body
    signature = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": f"v1,{signature}",
    }


class WebhookSender:
    """Sends the message of one job, once.

    Args:
        origins: Where messages may go.
        secret: Signs them.
        ttl_s: How long a job is kept after its end.
        observer: Counts attempts.
        clock: Seconds since 1970.
        retry_after_s: Pauses between attempts.
        jitter: Like `random.uniform`.
    """

    def __init__(
        self,
        *,
        origins: frozenset[str],
        secret: bytes,
        ttl_s: float,
        observer: JobObserver,
        clock: Callable[[], float],
        retry_after_s: Sequence[float] = RETRY_AFTER_S,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._origins = origins
        self._secret = secret
        self._ttl_s = ttl_s
        self._observer = observer
        self._clock = clock
        self._retry_after_s = retry_after_s
        self._jitter = jitter
        self._client = httpx.AsyncClient(
            follow_redirects=False, trust_env=False, timeout=TIMEOUT_S, headers={"user-agent": "deepsynth-ocr"}
        )

    async def close(self) -> None:
        """Close connections."""
        await self._client.aclose()

    def check(self, url: str) -> None:
        """Check an address.

        Args:
            url: From a request.

        Raises:
            WebhookNotAllowedError: No message may go there.
        """
        if origin_of(url) not in self._origins:
            raise WebhookNotAllowedError(public={"field": "webhook_url"})

    async def send(self, job: Job) -> tuple[WebhookStatus, float | None]:
        """Try once.

        Args:
            job: One that has ended, with a webhook.

        Returns:
            What became of it, and when to try again.
        """
        assert job.webhook is not None
        # Again, as the setting may have changed since the job was submitted.
        if origin_of(job.webhook.url) not in self._origins:
            self._observer.webhook(job.id, "refused", None)
            return WebhookStatus.FAILED, None
        status = await self._post(job)
        if status is not None and 200 <= status < 300:
            self._observer.webhook(job.id, "delivered", status)
            return WebhookStatus.DELIVERED, None
        may_help = status is None or status in _RETRIED or status >= 500
        if not may_help or job.webhook.num_attempts >= len(self._retry_after_s):
            self._observer.webhook(job.id, "failed", status)
            return WebhookStatus.FAILED, None
        self._observer.webhook(job.id, "retried", status)
        pause_s = self._retry_after_s[job.webhook.num_attempts] * (1 + self._jitter(-_JITTER, _JITTER))
        return WebhookStatus.WAITING, self._clock() + pause_s

    async def _post(self, job: Job) -> int | None:
        """The response's status; None if there was none."""
        assert job.webhook is not None
        assert job.ended_s is not None
        message = {
            "type": f"job.{job.state}",
            "timestamp": datetime.fromtimestamp(job.ended_s, UTC).isoformat(timespec="milliseconds"),
            "data": to_job_summary(job, self._ttl_s).model_dump(mode="json", exclude={"webhook"}),
        }
        body = json.dumps(message).encode()
        # The same id for each attempt, so that a message that came twice is known.
        headers = {"content-type": "application/json", **sign(self._secret, job.id, int(self._clock()), body)}
        with contextlib.suppress(httpx.HTTPError, TimeoutError, OSError):
            async with (
                asyncio.timeout(TIMEOUT_S),
                self._client.stream("POST", job.webhook.url, content=body, headers=headers) as response,
            ):
                return response.status_code
        return None
