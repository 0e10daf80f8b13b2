"""The assembled service over engines that want images and engines that want views: the same answers."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, cast

import pytest

from service.engine.process.engines import ThreadEngine
from service.engine.protocol import SequenceRequest
from shared.deepseek_ocr.forms import PageImage, PageViews
from tests.support.fake_engine import SteeredEngine
from tests.support.service import png, running_service
from tests.unit.service.engine.gpu_tiny import paged_engine
from tests.unit.service.engine.tiny import tiny_engine, tiny_model

pytestmark = pytest.mark.integration

SMALL = [png("a"), png("b", size=(150, 90)), png("c", size=(60, 200))]
HUGE = png("d", size=(3100, 3000))


class WatchedEngine(ThreadEngine):
    """Remembers in which form pages came."""

    def __init__(self, make: Any) -> None:
        super().__init__(partial(make, tiny_model(), max_sequence_tokens=512))
        self.forms: list[type] = []

    def submit(self, request: SequenceRequest) -> Any:
        self.forms.append(type(request.page))
        return super().submit(request)


async def answers_of(make: Any, pages: list[bytes]) -> tuple[list[str], list[type]]:
    engine = WatchedEngine(make)
    async with running_service(cast("SteeredEngine", engine)) as service:
        responses = await asyncio.gather(
            *(service.ocr(page, max_new_tokens="12", blank_pages="read") for page in pages)
        )
    assert [response.status_code for response in responses] == [200] * len(pages)
    return [response.json()["text"] for response in responses], engine.forms


async def test_an_engine_that_prepares_views_is_sent_images_and_answers_the_same() -> None:
    texts, forms = await answers_of(paged_engine, SMALL)
    assert forms == [PageImage] * len(SMALL)
    expected, plain_forms = await answers_of(tiny_engine, SMALL)
    assert plain_forms == [PageViews] * len(SMALL)
    assert texts == expected
    assert any(texts)


async def test_a_huge_page_is_sent_as_views_to_every_engine() -> None:
    texts, forms = await answers_of(paged_engine, [HUGE, SMALL[0]])
    assert sorted(form.__name__ for form in forms) == ["PageImage", "PageViews"]
    assert texts == (await answers_of(tiny_engine, [HUGE, SMALL[0]]))[0]
