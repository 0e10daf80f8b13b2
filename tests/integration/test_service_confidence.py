"""Confidences of words, as clients of each route ask for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from lxml import etree
from PIL import Image, ImageDraw, ImageFont

from service.engine.fake import FakeEngine
from service.reader_parts import build_engine
from shared.contract.calibration import Calibration
from shared.contract.confidence import MonotoneMap
from tests.support.chat import chat, data_url, image_part
from tests.support.fake_engine import SteeredEngine
from tests.support.nano import NANO, needs_nano
from tests.support.pdf import make_pdf
from tests.support.programs import ROOT
from tests.support.service import RunningService, encode, make_settings, png, running_service

pytestmark = pytest.mark.integration

CYRILLIC_FACE = Path("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf")
ALWAYS_HALF = Calibration(*2 * (MonotoneMap(0.0, (0.0,), (0.5,)),))
NOTHING = dict.fromkeys(("calibrated", "word_accuracy", "lines", "words", "doubtful_words", "doubtful_digits"))


async def page_of(service: RunningService, data: bytes | None = None, **fields: str) -> dict[str, Any]:
    response = await service.ocr(png() if data is None else data, **fields)
    assert response.status_code == 200, response.text
    page: dict[str, Any] = response.json()["pages"][0]
    return page


async def test_nothing_is_scored_unless_asked_for() -> None:
    async with running_service() as service:
        page = await page_of(service)
        assert not any(request.wants_token_scores for request in service.engine.submitted)
    assert {name: page[name] for name in NOTHING} == NOTHING


@pytest.mark.parametrize("task", ["free", "ocr", "markdown"])
async def test_every_word_has_its_place_and_confidence(task: str) -> None:
    async with running_service() as service:
        page = await page_of(service, task=task, confidence="word")
    assert [word["text"] for word in page["words"]] == page["text"].split()
    assert all(page["text"][word["start"] : word["end"]] == word["text"] for word in page["words"])
    assert len({word["confidence"] for word in page["words"]}) > 1
    assert page["calibrated"] is False
    mean = sum(word["confidence"] for word in page["words"]) / len(page["words"])
    assert page["word_accuracy"] == pytest.approx(mean, abs=1e-3)
    assert [line["text"] for line in page["lines"]] == page["text"].splitlines()
    for region in page["regions"]:
        assert region["confidence"] == pytest.approx(mean, abs=1e-3)
    assert page["doubtful_words"] is None


async def test_blocks_have_confidences_without_a_list_of_words() -> None:
    async with running_service() as service:
        page = await page_of(service, task="ocr", confidence="block")
        coarse = await page_of(service, task="ocr")
    assert page["regions"][0]["confidence"] == page["word_accuracy"]
    assert page["words"] is page["lines"] is None
    assert coarse["regions"][0]["confidence"] is None


async def test_words_below_the_threshold_are_listed() -> None:
    async with running_service(review_threshold=0.99) as service:
        all_words = (await page_of(service, confidence="word"))["words"]
        some = sorted(word["confidence"] for word in all_words)[len(all_words) // 2]
        by_request = await page_of(service, review_threshold=str(some))
        by_setting = await page_of(service)
        none = await page_of(service, review_threshold="0")
    assert by_request["doubtful_words"] == [word for word in all_words if word["confidence"] < some]
    assert by_request["words"] is None
    assert by_setting["doubtful_words"] == [word for word in all_words if word["confidence"] < 0.99]
    assert none["doubtful_words"] == none["doubtful_digits"] == []


async def test_calibration_makes_confidences_probabilities() -> None:
    async with running_service(SteeredEngine(FakeEngine(calibration=ALWAYS_HALF))) as service:
        page = await page_of(service, confidence="word", review_threshold="0.5")
    assert page["calibrated"] is True
    assert {word["confidence"] for word in page["words"]} == {0.5}
    assert page["doubtful_words"] == []


async def test_text_with_many_wrong_words_is_told_everywhere() -> None:
    wrong = Calibration(*2 * (MonotoneMap(0.0, (0.0,), (0.4,)),))
    async with running_service(SteeredEngine(FakeEngine(calibration=wrong))) as service:
        page = await page_of(service)
        described = await page_of(service, task="describe")
        chatted = (await service.client.post("/v1/chat/completions", json=chat(image_part(png())))).json()
    assert (page["warnings"], page["word_accuracy"], page["words"]) == (["low_accuracy"], 0.4, None)
    assert (described["warnings"], described["word_accuracy"]) == ([], None)
    assert [warning["code"] for warning in chatted["warnings"]] == ["low_accuracy"]


@needs_nano
async def test_nano_is_calibrated_and_doubts_what_it_cannot_read() -> None:
    options = {"device": "cpu", "model": str(NANO)}
    engine = cast("Any", build_engine(make_settings(engine="native", **options)))
    async with running_service(engine, kind="native", **options) as service:
        sample = (ROOT / "docs" / "samples" / "sample-block.png").read_bytes()
        page = await page_of(service, sample, confidence="word", review_threshold="0.9")
        assert page["calibrated"] is True
        assert page["word_accuracy"] > 0.95
        assert page["warnings"] == []
        assert [word["text"] for word in page["words"]] == page["text"].split()
        if not CYRILLIC_FACE.is_file():
            pytest.skip(f"{CYRILLIC_FACE} is not installed")
        image = Image.new("L", (640, 300), 255)
        text = "Договор подписан сторонами\nв городе Казань. Оплата\nпроизводится ежемесячно\nдо пятого числа."
        ImageDraw.Draw(image).multiline_text((20, 20), text, font=ImageFont.truetype(CYRILLIC_FACE, 26), fill=0)
        whole = await page_of(service, encode(image), blank_pages="read")
        assert "low_accuracy" in whole["warnings"]
        page = await page_of(service, encode(image))
        assert page["status"] == ("unreadable" if whole["word_accuracy"] < 0.39 else "ok")


async def test_stream_and_pages_without_text() -> None:
    pdf = make_pdf(["one", ""])
    async with running_service() as service:
        response = await service.ocr(pdf, stream="true", confidence="word", review_threshold="1")
    events = [event.split("\ndata: ") for event in response.text.strip().split("\n\n")]
    pages = {page["page"]: page for name, data in events if name == "event: page" for page in [json.loads(data)]}
    assert [word["text"] for word in pages[1]["words"]] == pages[1]["text"].split()
    assert {name: pages[2][name] for name in NOTHING} == NOTHING


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"confidence": "token"}, "confidence"),
        ({"review_threshold": "1.1"}, "review_threshold"),
        ({"review_threshold": "nan"}, "review_threshold"),
        ({"review_threshold": "0.5", "format": "hocr"}, "review_threshold"),
        ({"review_threshold": "0.5", "format": "text"}, "review_threshold"),
        ({"confidence": "word", "format": "searchable-pdf"}, "confidence"),
        ({"confidence": "block", "format": "markdown"}, "confidence"),
    ],
)
async def test_what_has_no_place_is_refused(fields: dict[str, str], named: str) -> None:
    async with running_service() as service:
        response = await service.ocr(png(), **fields)
    assert (response.status_code, response.json()["code"], response.json()["field"]) == (422, "invalid_field", named)


async def test_formats_with_words_have_their_confidences() -> None:
    async with running_service(review_threshold=0.5) as service:
        words = (await page_of(service, confidence="word"))["words"]
        hocr = etree.fromstring((await service.ocr(png(), format="hocr")).content)
        alto = etree.fromstring((await service.ocr(png(), format="alto")).content)
        coarse = (await service.ocr(png(), format="alto", confidence="page")).text
    expected = [(word["text"], word["confidence"]) for word in words]
    titles = [(word.text, word.get("title")) for word in hocr.findall(".//{*}span[@class='ocrx_word']")]
    assert [(text, round(float(title.rpartition("x_wconf ")[2]) / 100, 4)) for text, title in titles] == expected
    assert [(word.get("CONTENT"), float(word.get("WC"))) for word in alto.findall(".//{*}String")] == expected
    assert "WC=" not in coarse


async def test_chat_and_mistral_have_them_too() -> None:
    async with running_service() as service:
        words = (await page_of(service, confidence="word"))["words"]
        asked = {**chat(image_part(png())), "confidence": "word", "review_threshold": 0.5}
        chatted = (await service.client.post("/v1/chat/completions", json=asked)).json()["pages"][0]
        body = {"document": {"type": "document_url", "document_url": data_url(png())}}
        by_word, by_block = [
            (await service.client.post("/v1/ocr", json={**body, "confidence_scores_granularity": fine})).json()[
                "pages"
            ][0]
            for fine in ("word", "block")
        ]
    assert chatted["words"] == words
    assert chatted["doubtful_words"] == [word for word in words if word["confidence"] < 0.5]
    scores = by_word["confidence_scores"]["word_confidence_scores"]
    assert [score["text"] for score in scores] == by_word["markdown"].split()
    assert all(by_word["markdown"].startswith(score["text"], score["start_index"]) for score in scores)
    least = min(score["confidence"] for score in scores)
    assert by_word["confidence_scores"]["minimum_page_confidence_score"] == least
    assert by_block["confidence_scores"]["word_confidence_scores"] is None
    assert by_block["blocks"][0]["confidence_scores"]["minimum_content_confidence_score"] == least
