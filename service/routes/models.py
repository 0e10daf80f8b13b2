"""`GET /v1/models` and `GET /v1/models/MODEL`: what is served."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from service.access.key import Scope
from service.adapters.models import ListedModel
from service.deps import Services, ServicesDep, require_ready
from service.errors import ModelNotFoundError
from service.routes.auth import require
from service.schemas import ModelAnswer, ModelsAnswer, Problem
from shared.contract.prompts import tasks_of

router = APIRouter(tags=["models"], dependencies=[Depends(require(Scope.OCR)), Depends(require_ready)])


def _answer(services: Services, model: ListedModel) -> ModelAnswer:
    info = services.engine.info
    return ModelAnswer(
        id=model.model_id,
        created=services.created_s,
        root=model.root,
        parent=model.parent,
        family=info.family,
        modes=[str(mode) for mode in info.geometry.modes],
        default_mode=str(info.geometry.default_mode),
        max_new_tokens=min(services.bounds.max_new_tokens, info.max_new_tokens),
        tasks=[str(task) for task in tasks_of(info.prompts)],
        max_sequence_tokens=info.max_sequence_tokens,
        max_pages_together=info.max_pages_together,
        takes_adapters=model.parent is None and info.adapter_slots > 0,
    )


@router.get("/v1/models", responses={503: {"model": Problem}})
async def list_models(services: ServicesDep) -> ModelsAnswer:
    """List the models that requests may name."""
    return ModelsAnswer(data=[_answer(services, model) for model in services.models.listed()])


@router.get("/v1/models/{model_id}", responses={404: {"model": Problem}, 503: {"model": Problem}})
async def get_model(model_id: str, services: ServicesDep) -> ModelAnswer:
    """Describe one of these models."""
    for model in services.models.listed():
        if model.model_id == model_id:
            return _answer(services, model)
    raise ModelNotFoundError
