"""A key as the service stores it: a name, what it allows, and a hash of its secret."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

PREFIX = "dso_"
"""Of every secret made here, so that secret scanners can recognise one."""
NAME_PATTERN = r"[a-z0-9][a-z0-9_-]{0,62}"


class Scope(StrEnum):
    """What a key allows."""

    OCR = "ocr"
    """Read documents and list models."""
    SAMPLES = "samples"
    """See, export and erase kept samples."""
    ADMIN = "admin"
    """Everything, commands for adapters included."""


def _check_name(name: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError("a key's name has a-z, 0-9, - and _, at most 63 characters")
    return name


class Key(BaseModel):
    """A key without its secret; also an entry of the key file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, AfterValidator(_check_name)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the secret. A fast hash is enough: a secret has 256 random bits, so it cannot be guessed."""
    scopes: Annotated[frozenset[Scope], Field(min_length=1)] = frozenset({Scope.OCR})
    requests_per_minute: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Documents; None for no limit."""
    max_concurrent: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Documents in work at the same time; None for no limit."""
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = None

    def matches(self, secret: str) -> bool:
        """Whether this is the key's secret; takes the same time for every wrong one."""
        return hmac.compare_digest(digest_of(secret), self.sha256)

    def allows(self, scope: Scope) -> bool:
        """Whether the key has the scope; admin has them all."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def is_expired(self, now: datetime | None = None) -> bool:
        """Whether its time is over."""
        return self.expires is not None and (now or datetime.now(UTC)) >= self.expires


def digest_of(secret: str) -> str:
    """The hash that is stored, in hex."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def new_secret() -> str:
    """A random secret of 256 bits."""
    return PREFIX + secrets.token_urlsafe(32)
