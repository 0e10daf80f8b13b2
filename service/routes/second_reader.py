"""Another model of this service as the second reader of a cascade."""

from __future__ import annotations

from dataclasses import replace

from service.adapters.models import ServedModels
from service.admission.gate import Permit
from service.ocr.reader import DocumentReader, PageResult
from service.ocr.request import OcrRequest


class LocalReader:
    """Reads single pages with a model that this service serves.

    Args:
        models: Have the model.
        reader: Reads the pages.
        model_id: The model.
    """

    def __init__(self, models: ServedModels, reader: DocumentReader, model_id: str) -> None:
        self._models = models
        self._reader = reader
        self._model_id = model_id

    async def read(
        self, data: bytes, request: OcrRequest, page: int, permit: Permit | None, *, may_store: bool
    ) -> PageResult:
        """See `service.ocr.cascade.SecondReader`."""
        del may_store
        async with self._models.lease(self._models.check(self._model_id)) as lease:
            asked = replace(request, model_id=lease.model_id, selection=(page,), pages_together=False)
            document = await self._reader.read(data, asked, permit)
            lease.finished(result.finish_reason for result in document.results)
        return document.pages[0]
