"""Pages read in one pass: what is asked of the engine, and which page gets what of its answer."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.fake import FakeEngine, _scores, fake_tokens
from service.engine.protocol import EngineInfo, SamplingParams, SequenceRequest, SequenceResult, SequenceTimings
from service.errors import EngineError, TooManyPagesError, UndecodableError
from service.ocr.confidence import Granularity, Wanted
from service.ocr.outcome import PageStatus
from service.ocr.request import OcrRequest
from service.ocr.together import PageSplitter, split_result
from shared.contract.answer import FinishReason
from shared.contract.calibration import Calibration
from shared.contract.confidence import MonotoneMap, score_tokens
from shared.contract.prompts import Task
from shared.deepseek_ocr.geometry import GeometryConfig, Mode
from shared.images.page_ink import InkLine, PageInk
from tests.unit.service.ocr.test_reader import Bench, bench

PROMPT = "Multi page parsing."


def pages_of(text: str, num_pages: int) -> list[str]:
    """The text of each page of an answer that comes at once, without spacing at its ends."""
    splitter = PageSplitter(num_pages)
    pages = [""] * num_pages
    for page, piece in [*splitter.push(text), *splitter.finish()]:
        pages[page] += piece
    return [page.strip() for page in pages]


def reads_together(**options: Any) -> FakeEngine:
    return FakeEngine(reads_pages_together=True, **options)


def asked_of(desk: Bench) -> list[SequenceRequest]:
    """The requests that the engine gets from now on."""
    asked: list[SequenceRequest] = []
    submit = desk.engine.submit

    def noting(request: SequenceRequest) -> Any:
        asked.append(request)
        return submit(request)

    desk.engine.submit = noting  # type: ignore[method-assign]
    return asked


async def test_all_pages_are_one_sequence_and_each_gets_its_own_text():
    async with bench(page_slots=1, engine=reads_together()) as desk:
        asked = asked_of(desk)
        document = await desk.read(3, pages_together=True, max_new_tokens=50)
    (request,) = asked
    assert request.prompt == PROMPT
    assert len(request.pages) == 3
    assert request.params.max_new_tokens == 150
    alone = [replace(request, page=page, more_pages=()) for page in request.pages]
    assert [page.text for page in document.pages] == ["".join(fake_tokens(each)) for each in alone]
    assert [page.status for page in document.pages] == [PageStatus.OK] * 3
    assert document.text == "\n\n".join(page.text for page in document.pages)
    # The pass is counted once.
    assert [result.vision_tokens for result in document.results] == [16, 16, 16]
    assert sum(result.completion_tokens for result in document.results) == len(fake_tokens(request))
    assert [page.finish_reason for page in document.pages] == [FinishReason.STOP] * 3
    assert all(page.words is None for page in document.pages)


async def test_each_page_has_its_own_words_and_coverage_and_is_upright():
    line = InkLine((40, 40, 360, 70), (45, 93, 45, 60), 14.0)
    column = tuple(replace(line, box_px=(520, y, 860, y + 24)) for y in range(40, 400, 40))
    half = MonotoneMap(0.0, (-1.0, 0.0), (0.5, 0.5))
    async with bench(engine=reads_together(calibration=Calibration(half, half))) as desk:
        desk.source.ink = {2: PageInk(500, 0.1, lines=column)}
        wanted = Wanted(Granularity.WORD, 0.9)
        document = await desk.read(3, pages_together=True, max_new_tokens=50, confidence=wanted)
        assert [order.turn_degrees for order in desk.source.orders] == [None] * 3
        await desk.read(1, pages_together=True, finds_turned_pages=False)
        assert desk.source.orders[-1].turn_degrees == 0
    for page in document.pages:
        assert page.words is not None
        assert page.words.is_calibrated
        assert [page.text[word.start : word.end] for word in page.words.words] == page.text.split()
        assert page.words.doubtful_words == page.words.words
    _, covered, _ = document.pages
    assert [page.account is None for page in document.pages] == [True, False, True]
    assert covered.account is not None
    assert covered.result is not None
    assert covered.confidence == pytest.approx(covered.result.confidence * covered.account.coverage)
    assert covered.is_partly_read


async def test_words_of_a_page_are_as_sure_as_if_it_had_been_read_alone():
    async with bench(engine=reads_together()) as desk:
        asked = asked_of(desk)
        document = await desk.read(2, pages_together=True, max_new_tokens=50, confidence=Wanted(Granularity.WORD))
    for page, prepared in zip(document.pages, asked[0].pages, strict=True):
        alone = _scores(fake_tokens(replace(asked[0], page=prepared, more_pages=())))
        assert page.result is not None
        assert page.result.token_scores == alone
        assert page.words is not None
        assert [word.confidence for word in page.words.words] == [
            pytest.approx(math.exp(each), abs=1e-4) for each in alone.log_probabilities
        ]


async def test_pages_that_are_read_alone_are_asked_with_the_models_own_prompt():
    async with bench(engine=reads_together()) as desk:
        asked = asked_of(desk)
        await desk.read(2)
    assert [request.prompt for request in asked] == ["document parsing."] * 2
    assert not any(request.wants_token_scores or request.more_pages for request in asked)


async def test_blank_and_broken_pages_are_not_part_of_the_pass():
    async with bench(engine=reads_together()) as desk:
        asked = asked_of(desk)
        desk.source.ink = {1: PageInk(marks=0, ink_ratio=0.0)}
        desk.source.fail = {3}
        document = await desk.read(4, pages_together=True)
    assert len(asked[0].pages) == 2
    assert [page.status for page in document.pages] == [
        PageStatus.BLANK,
        PageStatus.OK,
        PageStatus.FAILED,
        PageStatus.OK,
    ]
    assert isinstance(document.pages[2].error, UndecodableError)
    assert document.finish_reason is FinishReason.STOP


async def test_pages_that_the_answer_did_not_reach_are_unreadable_and_the_document_says_it_was_cut():
    async with bench(engine=reads_together()) as desk:
        document = await desk.read(3, pages_together=True, max_new_tokens=2)
    assert document.finish_reason is FinishReason.LENGTH
    assert document.pages[0].status is PageStatus.OK
    assert document.pages[2].status is PageStatus.UNREADABLE
    assert (document.pages[2].result, document.pages[2].model_id, document.pages[2].confidence) == (None, None, None)
    begun = [page for page in document.pages if page.result is not None]
    assert [page.finish_reason for page in begun] == [FinishReason.STOP] * (len(begun) - 1) + [FinishReason.LENGTH]
    assert sum(result.vision_tokens for result in document.results) == 48
    assert sum(result.completion_tokens for result in document.results) == 6


async def test_a_pass_that_fails_costs_all_its_pages():
    async with bench(engine=reads_together(fail_with={PROMPT: "engine_failed"})) as desk:
        with pytest.raises(EngineError):
            await desk.read(2, pages_together=True)


async def test_more_pages_than_fit_are_refused_before_any_is_decoded():
    async with bench(engine=reads_together()) as desk:
        most = desk.engine.info.max_pages_together
        with pytest.raises(TooManyPagesError) as refused:
            await desk.read(most + 1, pages_together=True)
        assert refused.value.public == {"field": "pages_together", "limit": most}
        assert desk.source.num_decoded == 0


async def test_deltas_name_the_page_they_belong_to():
    seen: dict[int, str] = {}
    async with bench(engine=reads_together()) as desk:
        with desk.gate.admit() as permit:
            params = SamplingParams(50)
            order = OcrRequest(Task.FREE, None, Mode.BASE, params, "fake", None, pages_together=True)
            document = await desk.reader.read(
                b"3", order, permit, on_delta=lambda page, text: seen.update({page: seen.get(page, "") + text})
            )
    assert seen == {page.page: page.text for page in document.pages}


@given(
    st.lists(st.sampled_from(["<PAGE>", "<PA", "GE>", "a", " b", "\n", "long word"]), max_size=12), st.integers(1, 4)
)
def test_results_of_pages_add_up_to_that_of_the_pass(tokens: list[str], num_pages: int):
    scores = score_tokens([token.encode() for token in tokens], [-0.1 * index for index in range(len(tokens))])
    text = "".join(tokens)
    timings = SequenceTimings(1.0, 2.0, 3.0, 4.0)
    whole = SequenceResult("s", text, FinishReason.LENGTH, 0.5, 0.1, 7 * num_pages, 5, len(tokens), timings, scores)
    results = split_result(whole, [7] * num_pages)
    assert len(results) == num_pages
    found = [result for result in results if result is not None]
    assert [result.text for result in found] == pages_of(text, num_pages)[: len(found)]
    assert sum(result.completion_tokens for result in found) == len(tokens)
    assert sum(result.vision_tokens for result in found) == 7 * num_pages
    assert sum(result.prompt_tokens for result in found) == 5
    assert sum(result.timings.generate_s for result in found) == 4.0
    for result in found:
        placed = result.token_scores
        assert placed is not None
        for start, end in zip(placed.starts, placed.ends, strict=True):
            assert 0 <= start <= end
        shown = {place for start, end in zip(placed.starts, placed.ends, strict=True) for place in range(start, end)}
        assert shown >= set(range(len(result.text)))


def test_how_many_pages_fit_follows_from_positions_and_tokens_of_a_page():
    info = EngineInfo("m", "cpu", "none", GeometryConfig(), 4096, 32_768, 8, reads_pages_together=True)
    assert info.max_pages_together == 61  # 273 vision tokens and 256 for the answer
    assert replace(info, max_sequence_tokens=8192).max_pages_together == 15
    assert replace(info, reads_pages_together=False).max_pages_together == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<PAGE>one\n<PAGE>two", ["one", "two"]),
        ("one<PAGE>still one<PAGE>two", ["onestill one", "two"]),
        ("no mark", ["no mark", ""]),
        ("<PAGE>one", ["one", ""]),
        ("<PAGE>one<PAGE>two<PAGE>three", ["one", "twothree"]),
        ("<PAGE>a <PAG b<PAGE><PA", ["a <PAG b", "<PA"]),
        ("", ["", ""]),
    ],
)
def test_an_answer_is_cut_at_its_marks(text: str, expected: list[str]):
    assert pages_of(text, 2) == expected


@given(st.lists(st.sampled_from(["<PAGE>", "<PAGE", "<", ">", "a", "\n", "PAGE>"]), max_size=12), st.data())
def test_however_an_answer_arrives_it_is_cut_alike(parts: list[str], data: st.DataObject):
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    splitter = PageSplitter(3)
    pages = ["", "", ""]
    for start, end in pairwise([0, *cuts, len(text)]):
        for page, piece in splitter.push(text[start:end]):
            pages[page] += piece
    for page, piece in splitter.finish():
        pages[page] += piece
    assert [page.strip() for page in pages] == pages_of(text, 3)
