"""`/livez`: the process is alive. `/readyz`: pages can be read. `/metrics`: for Prometheus."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Depends
from starlette.responses import Response

from service.deps import ServicesDep, require_ready
from service.errors import DrainingError
from service.routes.openapi import problems
from service.schemas import ReadyAnswer, StatusAnswer

EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"

router = APIRouter(tags=["health"])
metrics_router = APIRouter(tags=["health"])


@router.get("/livez", responses=problems(needs_key=False))
async def livez() -> StatusAnswer:
    """Say that the process is alive."""
    return StatusAnswer(status="alive")


@router.get("/readyz", responses=problems(503, needs_key=False), dependencies=[Depends(require_ready)])
async def readyz(services: ServicesDep) -> ReadyAnswer:
    """Say whether to send requests, and whether their pages are kept.

    A full queue is still ready, a process that is about to stop is not.
    """
    if services.gate.is_leaving:
        raise DrainingError
    samples: Literal["off", "full", "thumbnail"] = "off"
    if services.samples is not None:
        samples = "thumbnail" if services.samples.are_thumbnails else "full"
    return ReadyAnswer(status="ready", jobs=services.jobs is not None, samples=samples)


@metrics_router.get("/metrics", include_in_schema=False)
async def metrics(services: ServicesDep) -> Response:
    """Every metric, at most DEEPSYNTH_METRICS_CACHE_S old."""
    text = await services.exposition.text()
    return Response(text, headers={"content-type": EXPOSITION, "cache-control": "no-store"})
