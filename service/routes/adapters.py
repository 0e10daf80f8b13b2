"""`GET /adapters`: the state of every version. `POST /adapters/{name}/...`: operators' commands, with an admin key."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError

from service.access.key import Scope
from service.adapters.catalog import CatalogEntry
from service.adapters.manager import AdapterManager
from service.adapters.versions import AdapterVersion
from service.deps import ServicesDep, require_ready
from service.errors import AdaptersOffError, InvalidFieldError
from service.routes.auth import SecretDep, is_admin, require, require_admin
from service.routes.form import BoundedBody
from service.routes.openapi import json_body, problems
from service.schemas import (
    AdapterAnswer,
    AdapterCommand,
    AdaptersAnswer,
    AdapterVersionAnswer,
    PinCommand,
    RefuseCommand,
    RollbackCommand,
    UnpublishedFolder,
)

DEFAULT_LISTED, MAX_LISTED = 100, 1000
"""Adapters in an answer."""
MAX_BODY_BYTES = 16 * 1024
UNNAMED_OPERATOR = "operator"

router = APIRouter(tags=["adapters"], dependencies=[Depends(require(Scope.OCR)), Depends(require_ready)])
admin_router = APIRouter(tags=["adapters"], dependencies=[Depends(require_admin), Depends(require_ready)])

_RESPONSES = problems(404, 408, 409, 413, 422)
CommandT = TypeVar("CommandT", bound=AdapterCommand)


def _body(command: type[AdapterCommand]) -> dict[str, Any]:
    """OpenAPI's description of a command, which is parsed by hand, after the key has been checked."""
    return json_body(command)


async def _require_adapters(services: ServicesDep) -> AdapterManager:
    if services.adapters is None:
        raise AdaptersOffError
    return services.adapters


AdaptersDep = Annotated[AdapterManager, Depends(_require_adapters)]


async def _parse(request: Request, kind: type[CommandT]) -> CommandT:
    """Read and check a command's body; raises what `BoundedBody` does, or `InvalidFieldError`."""
    if request.query_params:
        raise InvalidFieldError(
            public={
                "field": "",
                "expected": list(kind.model_fields),
                "reason": "a command's fields belong in its JSON body",
            }
        )
    bounds = replace(request.state.services.bounds, max_upload_bytes=MAX_BODY_BYTES)
    pieces = BoundedBody(request, bounds, MAX_BODY_BYTES).stream()
    try:
        data = b"".join([piece async for piece in pieces])
    finally:
        await pieces.aclose()
    try:
        return kind.model_validate_json(data or b"{}", strict=True)
    except ValidationError as error:
        place = error.errors(include_input=False, include_url=False)[0]["loc"]
        field = str(place[0]) if place and place[0] in kind.model_fields else ""
        raise InvalidFieldError(public={"field": field, "expected": list(kind.model_fields)}) from error


@router.get(
    "/adapters",
    responses=problems(422),
    openapi_extra={
        "parameters": [
            {
                "name": "limit",
                "in": "query",
                "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LISTED, "default": DEFAULT_LISTED},
            },
            {"name": "after", "in": "query", "schema": {"type": "string"}},
        ]
    },
)
async def list_adapters(request: Request, services: ServicesDep, secret: SecretDep) -> AdaptersAnswer:
    """List adapters by name with the state of their versions; details of refusals only with an admin key.

    The query string may have `limit`, the number of adapters, 100 unless it says otherwise and 1000 at most, and
    `after`, the name after which the list starts; `next` of an answer is the `after` of the next one.
    """
    limit, after = _page_of(request)
    if services.adapters is None:
        return AdaptersAnswer(
            enabled=False, volume="off", slots=0, slots_used=0, requests_waiting=0, adapters=[], misnamed=[], next=None
        )
    adapters, shows_details = services.adapters, is_admin(request, services, secret)
    names = sorted(name for name in adapters.catalog.entries if name > after)
    shown = names[:limit]
    return AdaptersAnswer(
        enabled=True,
        volume=adapters.volume_fault or "ok",
        slots=services.engine.info.adapter_slots,
        slots_used=len(services.engine.adapters),
        requests_waiting=adapters.cache.num_waiting,
        adapters=[_answer(adapters, adapters.catalog.entries[name], shows_details=shows_details) for name in shown],
        misnamed=[name.encode("utf-8", "backslashreplace").decode() for name in adapters.misnamed],
        next=shown[-1] if len(shown) < len(names) else None,
    )


def _page_of(request: Request) -> tuple[int, str]:
    """Which part of the list is wanted; raises `InvalidFieldError`."""
    given = request.query_params
    if unknown := [name for name in given if name not in {"limit", "after"}]:
        raise InvalidFieldError(public={"field": unknown[0][:64], "expected": ["limit", "after"]})
    limit = given.get("limit", str(DEFAULT_LISTED))
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:5]) <= MAX_LISTED):
        raise InvalidFieldError(public={"field": "limit", "expected": f"1 to {MAX_LISTED}"})
    return int(limit[:5]), given.get("after", "")


@admin_router.post("/adapters/{name}/pin", responses=_RESPONSES, openapi_extra=_body(PinCommand))
async def pin(name: str, request: Request, adapters: AdaptersDep) -> AdapterAnswer:
    """Make a name serve one version until it is unpinned."""
    command = await _parse(request, PinCommand)
    await adapters.pin(name, command.version, who=command.who or UNNAMED_OPERATOR, why=command.why)
    return _answer(adapters, adapters.catalog.entries[name], shows_details=True)


@admin_router.post("/adapters/{name}/rollback", responses=_RESPONSES, openapi_extra=_body(RollbackCommand))
async def roll_back(name: str, request: Request, adapters: AdaptersDep) -> AdapterAnswer:
    """Take the served version out of service and return to the last good one."""
    command = await _parse(request, RollbackCommand)
    await adapters.roll_back(name, who=command.who or UNNAMED_OPERATOR, why=command.why)
    return _answer(adapters, adapters.catalog.entries[name], shows_details=True)


@admin_router.post("/adapters/{name}/refuse", responses=_RESPONSES, openapi_extra=_body(RefuseCommand))
async def refuse(name: str, request: Request, adapters: AdaptersDep) -> AdapterAnswer:
    """Take a version out of service."""
    command = await _parse(request, RefuseCommand)
    await adapters.refuse(name, command.version, who=command.who or UNNAMED_OPERATOR, why=command.why)
    return _answer(adapters, adapters.catalog.entries[name], shows_details=True)


def _answer(adapters: AdapterManager, entry: CatalogEntry, *, shows_details: bool) -> AdapterAnswer:
    active = entry.versions.get(entry.active) if entry.active is not None else None
    return AdapterAnswer(
        name=entry.name,
        serving=active.model_id if active else None,
        pinned=adapters.catalog.decisions.pins.get(entry.name),
        on_volume=entry.listing.current,
        published=list(entry.listing.versions),
        unpublished=[
            UnpublishedFolder(folder=folder, reason="manifest_missing") for folder in entry.listing.unpublished
        ],
        versions=[
            _version(adapters, entry, version, shows_details=shows_details)
            for _, version in sorted(entry.versions.items())
        ],
    )


def _version(
    adapters: AdapterManager, entry: CatalogEntry, version: AdapterVersion, *, shows_details: bool
) -> AdapterVersionAnswer:
    return AdapterVersionAnswer(
        version=version.reference.version,
        state=adapters.catalog.state(entry, version).value,
        reason=version.refusal.reason if version.refusal else None,
        detail=version.refusal.detail if version.refusal and shows_details else None,
        fault=version.fault,
        documents_running=adapters.cache.num_holds(version.model_id),
        pages=version.num_pages,
        load_s={stage: round(seconds, 4) for stage, seconds in version.stages_s.items()},
    )
