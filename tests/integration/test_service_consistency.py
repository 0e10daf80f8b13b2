"""Whatever the model writes and whichever options are sent: places are those of the text, and formats can be parsed."""

from __future__ import annotations

import random
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.support.chat import data_url
from tests.support.pdf import make_pdf
from tests.support.service import RunningService, running_service

pytestmark = pytest.mark.integration

LABELS = ("title", "text", "table", "image", "image_caption", "header", "footer", "page_number", "list", "equation")
BODIES = (
    "# Head", "plain words here", "**bold** and `code`", "", "   ", "- one\n- two", "\\(x^2\\)", "é ü 日本",
    "a\u0301 b", "<table><tr><td>a b</td><td>7</td></tr><tr><td colspan=2>x & y</td></tr></table>",
    " <table><tr><td>unclosed",
    "| a | b |\n| --- | --- |\n| 1 | 2 |", "<script>alert(1)</script>", "3.50 12,00 \u20ac", "<b>t</b>",
)  # fmt: skip
DOCUMENT = make_pdf(["one one", "two two"], size_pt=(200, 200))
ROUNDS = 8


def written(chance: random.Random) -> list[str]:
    """Tokens of an answer with parts of any label, in boxes or not."""
    tokens: list[str] = []
    for _ in range(chance.randint(0, 7)):
        if chance.random() < 0.8:
            left, right, top, bottom = (chance.randint(0, 999) for _ in range(4))
            box = [min(left, right), min(top, bottom), max(left, right), max(top, bottom)]
            tokens += ["<|ref|>", chance.choice(LABELS), "<|/ref|>", "<|det|>", f"[{box}]", "<|/det|>", "\n"]
        tokens += re.findall(r"\s*\S+|\s+$", chance.choice(BODIES))
        tokens.append(chance.choice(["\n\n", "\n", " ", ""]))
    return [token for token in tokens if token] or ["x"]


def options(chance: random.Random) -> dict[str, str]:
    chosen = {"task": chance.choice(["markdown", "markdown", "free", "ocr"])}
    offered = {"join_pages": ["true"], "confidence": ["word", "block"], "review_threshold": ["0.7"]}
    if chosen["task"] == "markdown":
        offered |= {"table_format": ["html", "markdown"], "omit": ["header", "header,footer,page_number"]}
        offered |= {"figures": ["true"]}
    return chosen | {name: chance.choice(values) for name, values in offered.items() if chance.random() < 0.5}


def check_spans(page: dict[str, Any]) -> None:
    for name in ("words", "lines", "doubtful_words", "doubtful_digits"):
        for span in page[name] or []:
            assert page["text"][span["start"] : span["end"]] == span["text"]
            assert page["text"][: span["start"]].count("\n") + 1 == span["line"]


async def check_formats(service: RunningService, fields: dict[str, str]) -> None:
    fields = {name: fields[name] for name in ("task", "table_format", "omit") if name in fields}
    for name in ("hocr", "alto", "html"):
        answer = await service.ocr(DOCUMENT, "a.pdf", format=name, **fields)
        assert answer.status_code == 200, answer.text
        root = ElementTree.fromstring(re.sub("<!DOCTYPE[^>]*>", "", answer.text)) if name != "html" else None
        assert "<script" not in answer.text
        if name == "alto" and root is not None:
            sizes = [float(each.get(size, 0)) for each in root.iter() for size in ("HPOS", "VPOS", "WIDTH", "HEIGHT")]
            assert min(sizes) >= 0


async def check_chat(service: RunningService, task: str) -> None:
    part = {"type": "file", "file": {"file_data": data_url(DOCUMENT, "application/pdf")}}
    body = {"model": "fake", "messages": [{"role": "user", "content": [part]}], "task": task}
    answer = (
        await service.client.post("/v1/chat/completions", json=body | {"logprobs": True, "top_logprobs": 3})
    ).json()
    (choice,) = answer["choices"]
    assert "".join(token["token"] for token in choice["logprobs"]["content"]) == choice["message"]["content"]


async def check_mistral(service: RunningService, chance: random.Random) -> None:
    body: dict[str, Any] = {"document": {"type": "document_url", "document_url": data_url(DOCUMENT, "application/pdf")}}
    body |= {"confidence_scores_granularity": "word", "table_format": chance.choice([None, "html", "markdown"])}
    body |= dict.fromkeys(("extract_header", "extract_footer"), chance.random() < 0.5)
    answer = await service.client.post("/v1/ocr", json=body)
    assert answer.status_code == 200, answer.text
    for page in answer.json()["pages"]:
        texts = [(page["markdown"], (page["confidence_scores"] or {}).get("word_confidence_scores"))]
        texts += [(table["content"], table["word_confidence_scores"]) for table in page["tables"]]
        assert all(f"[{table['id']}]({table['id']})" in page["markdown"] for table in page["tables"])
        for text, words in texts:
            assert all(text[word["start_index"] :].startswith(word["text"]) for word in words or [])


async def test_places_are_those_of_the_text_and_formats_are_well_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(7)
    monkeypatch.setattr("service.engine.fake.fake_tokens", lambda request, adapter=b"": written(chance))
    async with running_service(blank_pages="read", min_confidence=0.0) as service:
        for _ in range(ROUNDS):
            fields = options(chance)
            answer = await service.ocr(DOCUMENT, "a.pdf", **fields)
            assert answer.status_code == 200, answer.text
            for page in answer.json()["pages"]:
                check_spans(page)
            await check_formats(service, fields)
            await check_chat(service, fields["task"])
            await check_mistral(service, chance)
