"""What an answer says of a page's print: how much of it was read, and how the page was turned."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from service.engine.fake import FakeEngine
from service.engine.protocol import SequenceEvent, SequenceResult
from tests.support.fake_engine import SteeredEngine
from tests.support.printed import two_columns
from tests.support.service import encode, running_service

pytestmark = pytest.mark.integration

TURNED = encode(two_columns().transpose(Image.Transpose.ROTATE_270))


async def test_turned_page_is_turned_back_unless_it_is_asked_for_as_it_is() -> None:
    async with running_service() as service:
        found = (await service.ocr(TURNED)).json()["pages"][0]
        kept = (await service.ocr(TURNED, orientation="as-is")).json()["pages"][0]
        upright = (await service.ocr(encode(two_columns()))).json()["pages"][0]
    assert (found["turned_degrees"], found["width_px"], found["height_px"]) == (270, 1000, 360)
    assert found["text"] == upright["text"]
    assert (kept["turned_degrees"], kept["width_px"], kept["height_px"]) == (0, 360, 1000)


class LateEngine(FakeEngine):
    """Reads nothing on its first page."""

    has_read = False

    def step(self) -> list[SequenceEvent]:
        events = super().step()
        for index, event in enumerate(events):
            if isinstance(event, SequenceResult) and not self.has_read:
                events[index] = replace(event, text="")
                self.has_read = True
        return events


async def test_page_of_which_nothing_could_be_made_when_turned_is_given_as_it_is() -> None:
    async with running_service(SteeredEngine(LateEngine())) as service:
        found = (await service.ocr(TURNED)).json()["pages"][0]
        kept = (await service.ocr(TURNED, orientation="as-is")).json()["pages"][0]
        assert len(service.engine.submitted) == 3
    assert (found["status"], found["turned_degrees"]) == ("ok", 0)
    assert (found["width_px"], found["height_px"]) == (360, 1000)
    assert found["text"] == kept["text"]


async def test_settings_say_what_a_request_does_not() -> None:
    async with running_service(orientation="as-is", min_coverage=0) as service:
        page = (await service.ocr(TURNED)).json()["pages"][0]
        assert (page["turned_degrees"], page["warnings"]) == (0, [])
        assert (await service.ocr(TURNED, orientation="auto")).json()["pages"][0]["turned_degrees"] == 270
        preview = await service.client.post("/preview", files={"file": TURNED}, data={"orientation": "auto"})
        assert (preview.headers["x-page-size"], preview.headers["x-page-turn"]) == ("1000x360", "270")
        preview = await service.client.post("/preview", files={"file": TURNED})
        assert (preview.headers["x-page-size"], preview.headers["x-page-turn"]) == ("360x1000", "0")


async def test_page_that_was_partly_read_says_so_and_where() -> None:
    async with running_service() as service:
        # The fake reads a few words, whatever is on the page.
        (page,) = (await service.ocr(encode(two_columns()))).json()["pages"]
        assert page["coverage"] < 0.6
        assert page["warnings"] == ["partly_read"]
        assert all(0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 360 for x1, y1, x2, y2 in page["unread"])
        assert page["confidence"] == pytest.approx(0.875 * page["coverage"], abs=1e-3)
        (page,) = (await service.ocr(encode(two_columns()), min_coverage="0")).json()["pages"]
        assert page["warnings"] == []


@pytest.mark.parametrize(("field", "value"), [("orientation", "sideways"), ("min_coverage", "1.5")])
async def test_values_that_do_not_exist_are_refused(field: str, value: str) -> None:
    async with running_service() as service:
        answer = await service.ocr(TURNED, **{field: value})
    assert (answer.status_code, answer.json()["field"]) == (422, field)
