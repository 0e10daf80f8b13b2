from __future__ import annotations

import dataclasses

import pytest

from service.engine.protocol import SamplingParams, SequenceResult, SequenceTimings
from service.errors import error_classes
from service.jobs.pages import decode_page, decode_request, encode_page, encode_request
from service.ocr.answer import to_page_answer
from service.ocr.outcome import PageStatus
from service.ocr.reader import PageResult
from service.ocr.request import OcrRequest
from shared.contract.answer import FinishReason
from shared.contract.prompts import Task
from shared.deepseek_ocr.geometry import Mode
from shared.deepseek_ocr.grounding import Region

READ = PageResult(
    3,
    PageStatus.OK,
    640,
    480,
    "déjà 😀",
    (Region("text", (1, 2, 3, 4), "déjà", 0),),
    SequenceResult("s", "t", FinishReason.LENGTH, 0.875, 0.5, 10, 20, 30, SequenceTimings(1.5, 2.5, 3.5, 4.5)),
    is_damaged=True,
    slot_wait_s=0.25,
    decode_s=0.5,
)


def test_page_that_was_read_is_the_same_afterwards() -> None:
    again = decode_page(encode_page(READ))
    assert dataclasses.asdict(again) == dataclasses.asdict(READ)


@pytest.mark.parametrize("code", error_classes())
def test_failed_page_keeps_its_error(code: str) -> None:
    error = error_classes()[code]()
    error.public["limit"] = 7
    failed = PageResult(1, PageStatus.FAILED, error=error)
    again = decode_page(encode_page(failed))
    assert type(again.error) is error_classes()[code]
    assert to_page_answer(again) == to_page_answer(failed)


def test_half_of_a_surrogate_pair_is_stored_as_it_is_answered() -> None:
    page = dataclasses.replace(READ, text="a\ud800b", regions=(Region("\udfff", (0, 0, 1, 1), "\ud83d\ude00", 0),))
    assert to_page_answer(decode_page(encode_page(page))) == to_page_answer(page)


def test_request_is_the_same_afterwards() -> None:
    params = SamplingParams(100, 0.5, 2**63 - 1)
    request = OcrRequest(Task.LOCATE, "où?", Mode.GUNDAM, params, "name@3", (1, 5), True, 0.25)
    assert decode_request(encode_request(request)) == request
