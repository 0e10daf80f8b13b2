"""`GET /adapters`: where every version stands. `POST /adapters/{name}/...`: operators' orders, behind the admin key."""

from __future__ import annotations

import hmac
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import ValidationError

from service.adapters.catalog import Directory, Family
from service.adapters.manager import AdapterServing
from service.adapters.versions import AdapterVersion
from service.deps import Services, ServicesDep
from service.errors import AdaptersOffError, AdminKeyError, AdminOffError, InvalidFieldError, UploadTooLargeError
from service.schemas import (
    AdapterAnswer,
    AdaptersAnswer,
    AdapterVersionAnswer,
    Order,
    PinOrder,
    Problem,
    RefuseOrder,
    RollbackOrder,
)

MAX_ORDER_BYTES = 16 * 1024
UNNAMED_OPERATOR = "operator"

router = APIRouter(tags=["adapters"])

_PROBLEM = {"model": Problem, "content": {"application/problem+json": {}}}
_RESPONSES: dict[int | str, dict[str, Any]] = dict.fromkeys((401, 403, 404, 409, 413, 422, 503), _PROBLEM)
OrderT = TypeVar("OrderT", bound=Order)


def _body(order: type[Order]) -> dict[str, Any]:
    """OpenAPI's description of an order; it is parsed by hand, after the key was checked."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": order.model_json_schema()}}}}


def _has_key(request: Request, services: Services) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    wanted = services.admin_key
    # Compared as bytes: a header may hold any of them.
    return bool(wanted) and scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), str(wanted).encode())


async def _order(request: Request, services: Services, kind: type[OrderT]) -> tuple[AdapterServing, OrderT]:
    """Check key and readiness, then parse the order.

    Args:
        request: The request, its body not read yet.
        services: The services.
        kind: What is ordered.

    Returns:
        The adapters, and the order.

    Raises:
        AdminOffError: Nobody can give orders.
        AdminKeyError: Somebody without the key tries to.
        AdaptersOffError: There are no adapters.
        UploadTooLargeError: The body is no order.
        InvalidFieldError: A field is missing, unknown or not valid.
    """
    if not services.admin_key:
        raise AdminOffError
    if not _has_key(request, services):
        raise AdminKeyError
    services.require_ready()
    if services.adapters is None:
        raise AdaptersOffError
    data = b""
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_ORDER_BYTES:
            raise UploadTooLargeError(public={"limit_bytes": MAX_ORDER_BYTES})
    try:
        return services.adapters, kind.model_validate_json(data or b"{}")
    except ValidationError as error:
        place = error.errors(include_input=False, include_url=False)[0]["loc"]
        field = str(place[0]) if place and place[0] in kind.model_fields else ""
        raise InvalidFieldError(public={"field": field, "expected": list(kind.model_fields)}) from error


@router.get("/adapters", responses={503: {"model": Problem}})
async def list_adapters(request: Request, services: ServicesDep) -> AdaptersAnswer:
    """Say where every adapter and version stands; details of refusals are shown to whoever has the admin key."""
    services.require_ready()
    if services.adapters is None:
        return AdaptersAnswer(enabled=False, volume="off", slots=0, slots_used=0, requests_waiting=0, adapters=[])
    adapters, shows_details = services.adapters, _has_key(request, services)
    return AdaptersAnswer(
        enabled=True,
        volume=adapters.volume_fault or "ok",
        slots=services.engine.info.adapter_slots,
        slots_used=len(adapters.residency.names),
        requests_waiting=adapters.residency.num_waiting,
        adapters=[
            _answer(adapters, family, shows_details=shows_details)
            for _, family in sorted(adapters.directory.families.items())
        ],
    )


@router.post("/adapters/{name}/pin", responses=_RESPONSES, openapi_extra=_body(PinOrder))
async def pin(name: str, request: Request, services: ServicesDep) -> AdapterAnswer:
    """Let a name stand for one version until it is unpinned."""
    adapters, order = await _order(request, services, PinOrder)
    await adapters.pin(name, order.version, who=order.who or UNNAMED_OPERATOR, why=order.why)
    return _answer(adapters, adapters.directory.families[name], shows_details=True)


@router.post("/adapters/{name}/rollback", responses=_RESPONSES, openapi_extra=_body(RollbackOrder))
async def roll_back(name: str, request: Request, services: ServicesDep) -> AdapterAnswer:
    """Take the version in use out of service and return to the last good one."""
    adapters, order = await _order(request, services, RollbackOrder)
    await adapters.roll_back(name, who=order.who or UNNAMED_OPERATOR, why=order.why)
    return _answer(adapters, adapters.directory.families[name], shows_details=True)


@router.post("/adapters/{name}/refuse", responses=_RESPONSES, openapi_extra=_body(RefuseOrder))
async def refuse(name: str, request: Request, services: ServicesDep) -> AdapterAnswer:
    """Take a version out of service."""
    adapters, order = await _order(request, services, RefuseOrder)
    await adapters.refuse(name, order.version, who=order.who or UNNAMED_OPERATOR, why=order.why)
    return _answer(adapters, adapters.directory.families[name], shows_details=True)


def _answer(adapters: AdapterServing, family: Family, *, shows_details: bool) -> AdapterAnswer:
    directory = adapters.directory
    active = family.versions.get(family.active) if family.active is not None else None
    return AdapterAnswer(
        name=family.name,
        serving=active.model_id if active else None,
        pinned=directory.decisions.pins.get(family.name),
        on_volume=family.listing.current,
        published=list(family.listing.versions),
        versions=[
            _version(adapters, directory, family, version, shows_details=shows_details)
            for _, version in sorted(family.versions.items())
        ],
    )


def _version(
    adapters: AdapterServing, directory: Directory, family: Family, version: AdapterVersion, *, shows_details: bool
) -> AdapterVersionAnswer:
    return AdapterVersionAnswer(
        version=version.reference.version,
        state=directory.state(family, version).value,
        reason=version.refusal.reason if version.refusal else None,
        detail=version.refusal.detail if version.refusal and shows_details else None,
        fault=version.fault,
        documents_running=adapters.residency.num_holds(version.model_id),
        pages=version.num_pages,
        load_s={stage: round(seconds, 4) for stage, seconds in version.stages_s.items()},
    )
