"""`GET /v1/models`: what is served."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from service.deps import ServicesDep, require_ready
from service.schemas import ModelAnswer, ModelsAnswer, Problem

router = APIRouter(tags=["models"], dependencies=[Depends(require_ready)])


@router.get("/v1/models", responses={503: {"model": Problem}})
async def list_models(services: ServicesDep) -> ModelsAnswer:
    """List the models that requests may name."""
    info = services.engine.info
    return ModelsAnswer(
        data=[
            ModelAnswer(
                id=model.model_id,
                root=model.root,
                parent=model.parent,
                modes=[str(mode) for mode in info.geometry.modes],
                default_mode=str(info.geometry.default_mode),
                max_new_tokens=min(services.bounds.max_new_tokens, info.max_new_tokens),
            )
            for model in services.models.listed()
        ]
    )
