import math

import pytest

from service.engine.protocol import FinishReason
from service.engine.repetition import LoopRule
from service.engine.sequence import Answer
from tests.unit.service.engine.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
RULE = LoopRule(max_period=8, min_tokens=12, min_repeats=3, suspicion=2)
SURE, UNSURE = math.log(0.9), math.log(0.1)


def answer_of(max_new_tokens: int = 200) -> Answer:
    return Answer(TOKENIZER, max_new_tokens, RULE)


def say(answer: Answer, text: str, log_probability: float = SURE):
    """Push a text byte by byte until something happens; the reason and what was streamed."""
    streamed = ""
    for token in TOKENIZER.encode_plain(text):
        before = answer.num_tokens
        reason = answer.push(token, log_probability)
        if reason or answer.num_tokens <= before:
            return reason, streamed
        streamed += answer.settled_text()
    return None, streamed


def test_text_streams_as_it_comes_and_whole_characters_only():
    answer = answer_of()
    tokens = TOKENIZER.encode_plain("aß")
    shown = []
    for token in tokens:
        answer.push(token, SURE)
        shown.append(answer.settled_text())
    assert shown == ["a", "", "ß"]
    assert answer.finish() == ""
    assert answer.text == "aß"


def test_a_character_cut_off_by_the_end_becomes_a_replacement():
    answer = answer_of()
    answer.push(TOKENIZER.encode_plain("ß")[0], SURE)
    assert answer.settled_text() == ""
    assert answer.finish() == answer.text == "�"


def test_a_repeat_is_held_back_and_released_when_it_breaks():
    answer = answer_of()
    _, streamed = say(answer, "x=====")
    assert streamed == "x=="
    assert say(answer, "y")[1] == "===y"


def test_a_loop_goes_back_to_its_first_period_and_forbids_the_way_in():
    answer = answer_of()
    reason, streamed = say(answer, "start " + "abcd" * 9)
    assert reason is None
    assert answer.num_tokens == len("start abcd") + 1
    assert streamed == "start abcda"
    assert answer.banned() == TOKENIZER.encode_plain("b")


def test_a_second_attempt_that_ends_by_itself_is_the_answer():
    answer = answer_of()
    _, streamed = say(answer, "start " + "abcd" * 9)
    assert say(answer, " and on", UNSURE) == (None, "")
    assert answer.push(TOKENIZER.eos_id, UNSURE) is FinishReason.STOP
    assert streamed + answer.finish() == answer.text == "start abcda and on"
    assert answer.num_tokens == len("start abcda and on")


@pytest.mark.parametrize(("log_probability", "text"), [(SURE, "start abcda nowxyz"), (UNSURE, "start abcda")])
def test_a_second_loop_ends_the_page_and_the_better_text_stays(log_probability, text):
    answer = answer_of()
    say(answer, "start " + "abcd" * 9)
    reason, _ = say(answer, " now" + "xyz" * 9, log_probability)
    assert reason is FinishReason.REPETITION
    answer.finish()
    assert answer.text == text
    assert answer.num_tokens == len(text)


@pytest.mark.parametrize(("max_new_tokens", "tokens"), [(50, 50), (200, 11 + 64)])
def test_a_second_attempt_without_end_is_repetition_and_ends_early_if_hopeless(max_new_tokens, tokens):
    answer = answer_of(max_new_tokens)
    say(answer, "start " + "abcd" * 9)
    text = "".join(chr(ord("0") + n % 70) for n in range(189))
    reasons = [answer.push(token, UNSURE) for token in TOKENIZER.encode_plain(text)[: tokens - 11]]
    assert reasons == [None] * (tokens - 12) + [FinishReason.REPETITION]
    answer.finish()
    assert answer.text == "start abcda"


def test_the_longest_answer_ends_with_length():
    answer = answer_of(max_new_tokens=4)
    assert say(answer, "abcdef")[0] is FinishReason.LENGTH
    answer.finish()
    assert answer.text == "abcd"


def test_confidence_is_that_of_the_tokens_kept():
    answer = answer_of()
    say(answer, "ab", math.log(0.5))
    answer.push(TOKENIZER.eos_id, math.log(0.125))
    assert answer.confidence == pytest.approx(0.5 ** (5 / 3))
