"""`GET /v1/models` and `GET /v1/models/MODEL`: what is served."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from service.access.key import Scope
from service.adapters.models import ListedModel
from service.deps import Services, ServicesDep, require_ready
from service.errors import ModelNotFoundError
from service.ocr.arrangement import gives_boxes
from service.routes.auth import require
from service.routes.form import refuse_query
from service.routes.openapi import problems
from service.schemas import ModelAnswer, ModelsAnswer
from shared.deepseek_ocr.reading_layout import layouts_of

router = APIRouter(
    tags=["models"], dependencies=[Depends(require(Scope.OCR)), Depends(require_ready), Depends(refuse_query)]
)


def _answer(services: Services, model: ListedModel) -> ModelAnswer:
    info = services.engine.info
    return ModelAnswer(
        id=model.model_id,
        created=services.created_s,
        root=model.root,
        parent=model.parent,
        family=info.family,
        tasks=[str(task) for task in model.tasks],
        modes=[str(mode) for mode in info.geometry.modes],
        layouts=[str(layout) for layout in layouts_of(info.geometry)],
        boxes=gives_boxes(model.tasks),
        default_mode=str(info.geometry.default_mode),
        max_new_tokens=min(services.bounds.max_new_tokens, info.max_new_tokens),
        max_sequence_tokens=info.max_sequence_tokens,
        max_pages_together=info.max_pages_together,
        takes_adapters=model.parent is None and info.adapter_slots > 0,
    )


@router.get("/v1/models", responses=problems(422))
async def list_models(services: ServicesDep) -> ModelsAnswer:
    """List the models that requests may name."""
    return ModelsAnswer(data=[_answer(services, model) for model in services.models.listed()])


@router.get("/v1/models/{model_id}", responses=problems(404, 422))
async def get_model(model_id: str, services: ServicesDep) -> ModelAnswer:
    """Describe one of these models."""
    listed = services.models.listed()
    for model in listed:
        if model.model_id == model_id:
            return _answer(services, model)
    raise ModelNotFoundError(public={"known": [model.model_id for model in listed]})
