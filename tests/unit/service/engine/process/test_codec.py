from dataclasses import replace

import numpy as np
import pytest

from service.engine.process.codec import (
    Broken,
    Cancel,
    EngineOutputs,
    Ping,
    Ready,
    Stop,
    Submit,
    decode_message,
    encode_message,
)
from service.engine.protocol import MAX_SEED, EngineState, EngineStats, SamplingParams, SequenceDelta, SequenceFailure
from service.frames import BrokenFrameError
from shared.contract.calibration import Calibration
from shared.contract.confidence import MonotoneMap, TokenScores
from shared.images.page_ink import InkLine
from tests.support.frames import through_pipe
from tests.unit.service.engine.standin import INFO, standin_request, standin_result


def test_a_submitted_page_arrives_with_its_pixels():
    request = standin_request("a", prompt="Ünicode \x00 <|ref|>", ink=200)
    request = replace(request, params=SamplingParams(3, temperature=0.7, seed=MAX_SEED))
    request.page.tiles_THWC[1] = 7
    arrived = through_pipe(Submit(request))
    assert isinstance(arrived, Submit)
    assert arrived.request.page.plan == request.page.plan
    np.testing.assert_array_equal(arrived.request.page.global_view_HWC, request.page.global_view_HWC)
    np.testing.assert_array_equal(arrived.request.page.tiles_THWC, request.page.tiles_THWC)
    assert (arrived.request.prompt, arrived.request.params) == (request.prompt, request.params)
    assert (arrived.request.sequence_id, arrived.request.model_id) == ("a", "stand-in")
    assert not arrived.request.is_canary


def test_several_pages_arrive_in_their_order():
    first, *more = (standin_request("a", ink=ink).page for ink in (10, 20, 30))
    lines = (InkLine((40, 40, 360, 70), (45, 93), 14.0),)
    sent = replace(standin_request("a"), page=first, more_pages=tuple(more), wants_token_scores=True, lines=lines)
    arrived = through_pipe(Submit(sent))
    assert isinstance(arrived, Submit)
    assert len(arrived.request.pages) == 3
    assert (arrived.request.wants_token_scores, arrived.request.lines) == (True, lines)
    for page, original in zip(arrived.request.pages, (first, *more), strict=True):
        for ours, theirs in zip(page.arrays, original.arrays, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_canary_arrives_as_one():
    request = replace(standin_request("a"), is_canary=True)
    arrived = through_pipe(Submit(request))
    assert isinstance(arrived, Submit)
    assert arrived.request.is_canary


def test_wish_for_scores_arrives():
    arrived = through_pipe(Submit(replace(standin_request("a"), wants_token_scores=True)))
    assert isinstance(arrived, Submit)
    assert arrived.request.wants_token_scores


def test_wish_for_the_text_at_once_arrives():
    arrived = through_pipe(Submit(replace(standin_request("a"), is_streamed=False)))
    assert isinstance(arrived, Submit)
    assert not arrived.request.is_streamed


@pytest.mark.parametrize("command", [Cancel("a"), Ping(), Stop()])
def test_commands_arrive_unchanged(command):
    assert through_pipe(command) == command


@pytest.mark.parametrize(
    "message",
    [
        Ready(INFO),
        Ready(replace(INFO, calibration=Calibration(*2 * (MonotoneMap(2.0, (-1.5, 0.0), (0.25, 1.0)),)))),
        EngineOutputs(
            (replace(standin_result(standin_request("b")), token_scores=TokenScores((0, 1), (2, 2), (-0.5, -0.0))),),
            EngineStats(EngineState.READY),
        ),
        EngineOutputs(
            (
                replace(
                    standin_result(standin_request("b")),
                    token_scores=TokenScores((0,), (1,), (-0.5,), (((b"a", -0.5), (b"\xe2\x82\xfe", -1.5)),)),
                ),
            ),
            EngineStats(EngineState.READY),
        ),
        Broken("what happened"),
        EngineOutputs(
            (
                SequenceDelta("a", "Grüße \ud7ff�"),
                standin_result(standin_request("b")),
                SequenceFailure("c", "engine_failed", "detail"),
            ),
            EngineStats(EngineState.READY, 1, 2, 3, (4, 5), 6, 0.5),
        ),
        EngineOutputs((), EngineStats(EngineState.READY, seconds_since_progress=float("inf"))),
    ],
)
def test_messages_arrive_unchanged(message):
    assert decode_message(encode_message(message)) == message


def test_half_characters_do_not_break_the_pipe():
    stats = EngineStats(EngineState.READY, seconds_since_progress=float("inf"))
    for text in ("a\ud83d", "\ude00b \ud7ff\U0001f600", "\udfff\ud800"):
        message = decode_message(encode_message(EngineOutputs((SequenceDelta("a", text),), stats)))
        whole = "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text)
        assert message == EngineOutputs((SequenceDelta("a", whole),), stats)
    scores = TokenScores((0,), (1,), (-0.5,), (((b"\xe2\xfe", -0.5),),))
    result = replace(standin_result(standin_request("b")), token_scores=scores)
    message = decode_message(encode_message(EngineOutputs((SequenceDelta("a", "\ud83d"), result), stats)))
    assert message == EngineOutputs((SequenceDelta("a", "\ufffd"), result), stats)
    arrived = through_pipe(Submit(standin_request("a", prompt="find \ud83d")))
    assert arrived.request.prompt == "find \ufffd"


@pytest.mark.parametrize(
    "header",
    [b"", b"[]", b'{"kind": "pickle"}', b'{"kind": "broken"}', b'{"kind": "broken", "detail": 3}'],
    ids=["nothing", "no object", "unknown kind", "missing field", "wrong type"],
)
def test_what_is_no_message_is_refused(header):
    with pytest.raises(BrokenFrameError):
        decode_message(header)
