"""Who may call a route: keys, compared before a body is read. Routers take these checks as dependencies.

OpenAI's and Mistral's clients and Open WebUI send `Authorization: Bearer KEY`, Azure's clients
`Ocp-Apim-Subscription-Key: KEY`; `X-API-Key: KEY` works as well.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from service.access.key import PREFIX, Key, Scope
from service.deps import RecordDep, Services, ServicesDep
from service.errors import AdminKeyError, AdminOffError, DeepSynthError, KeyInvalidError, KeyMissingError, KeyScopeError

logger = logging.getLogger(__name__)

_bearer = HTTPBearer(auto_error=False, description="A key of the service; only where keys are set.")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same key in a header of its own.")
_azure_header = APIKeyHeader(
    name="Ocp-Apim-Subscription-Key",
    scheme_name="AzureKeyHeader",
    auto_error=False,
    description="The same key as Azure's clients send it.",
)


async def _secret(
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    header: Annotated[str | None, Depends(_header)],
    azure_header: Annotated[str | None, Depends(_azure_header)],
) -> str | None:
    return bearer.credentials if bearer is not None else header or azure_header


SecretDep = Annotated[str | None, Depends(_secret)]


def _identify(request: Request, services: Services, secret: str | None) -> Key:
    """The caller's key; raises `KeyMissingError`, `KeyInvalidError` or `TooManyWrongKeysError`."""
    if not secret:
        raise KeyMissingError
    access, address = services.access, request.client.host if request.client else ""
    # Keys that we made cannot be guessed. They are exempt, or one client could lock out all others behind its proxy.
    if not secret.startswith(PREFIX):
        access.wrong_keys.check(address)
    key = access.ring.find(secret)
    if key is None or key.is_expired():
        access.wrong_keys.count(address)
        logger.warning("a wrong key", extra={"fields": {"address": address, "expired": key.name if key else None}})
        raise KeyInvalidError
    return key


def _check(services: Services, find: Callable[[], Key], *scopes: Scope) -> Key:
    try:
        key = find()
        if not any(key.allows(scope) for scope in scopes):
            raise KeyScopeError(public={"scope": scopes[0].value})
    except DeepSynthError as error:
        services.metrics.counter("key_rejections_total").labels(error.code).inc()
        raise
    return key


def require(*scopes: Scope) -> Callable[..., Awaitable[None]]:
    """A dependency that lets only keys with one of the scopes through, where keys are set."""

    async def check(request: Request, services: ServicesDep, record: RecordDep, secret: SecretDep) -> None:
        if services.access.needs_key:
            record.key_name = _check(services, lambda: _identify(request, services, secret), *scopes).name

    return check


async def use_key(request: Request, services: ServicesDep, record: RecordDep, secret: SecretDep) -> None:
    """Let keys with the scope `ocr` through, where keys are set, and count a document against their limits."""
    if not services.access.needs_key:
        return

    def find() -> Key:
        key = _identify(request, services, secret)
        record.key_name = key.name
        if key.allows(Scope.OCR):
            record.resources.enter_context(services.access.limits.using(key))
        return key

    key = _check(services, find, Scope.OCR)
    services.metrics.counter("key_requests_total").labels(key.name).inc()


def is_admin(request: Request, services: Services, secret: str | None) -> bool:
    """Whether the caller has a key with the scope `admin`."""
    try:
        return _identify(request, services, secret).allows(Scope.ADMIN)
    except DeepSynthError:
        return False


async def require_samples(request: Request, services: ServicesDep, record: RecordDep, secret: SecretDep) -> None:
    """Let only keys with the scope `samples` through; `AdminOffError` if no key is set."""
    if not (services.access.needs_key or services.access.has_admin):
        raise AdminOffError
    record.key_name = _check(services, lambda: _identify(request, services, secret), Scope.SAMPLES).name


async def require_admin(request: Request, services: ServicesDep, record: RecordDep, secret: SecretDep) -> None:
    """Let only keys with the scope `admin` through: `AdminOffError` if there is none, else `AdminKeyError`."""
    if not services.access.has_admin:
        raise AdminOffError

    def find() -> Key:
        try:
            return _identify(request, services, secret)
        except (KeyMissingError, KeyInvalidError):
            raise AdminKeyError from None

    record.key_name = _check(services, find, Scope.ADMIN).name
