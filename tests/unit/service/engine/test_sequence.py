import math

import pytest

from service.engine.sequence import Answer, TokenBytes
from shared.contract.answer import FinishReason, Rewind, TokenStatus
from shared.contract.repetition import LoopDetector, LoopRule, RepetitionGuard
from tests.unit.service.engine.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
RULE = LoopRule(max_period=8, min_tokens=12, min_repeats=3, suspicion=2)
SURE, UNSURE = math.log(0.9), math.log(0.1)


class Page:
    """An answer and a runner's part in it: ends, loops and the guard, for tokens that the test chooses."""

    def __init__(self, max_new_tokens: int = 200) -> None:
        self.answer = Answer(TokenBytes(TOKENIZER), RULE)
        self.max_new_tokens = max_new_tokens
        self.tokens: list[int] = []
        self.restart = 0
        self.detector = LoopDetector(RULE)
        self.guard: RepetitionGuard | None = None
        self.rewind: Rewind | None = None

    def push(self, token: int, log_probability: float = SURE) -> FinishReason | None:
        turn = self.answer.push(token, log_probability, *self.judge(token))
        if not isinstance(turn, Rewind):
            return turn
        self.rewind = turn
        del self.tokens[turn.kept :]
        self.restart, self.detector = turn.kept, LoopDetector(RULE)
        return None

    def judge(self, token: int) -> tuple[TokenStatus, int]:
        if token == TOKENIZER.eos_id:
            return TokenStatus.STOP, 0
        self.tokens.append(token)
        keep = self.detector.push(token)
        if keep is not None:
            return TokenStatus.LOOP, self.restart + keep
        count = len(self.tokens)
        code = TokenStatus.LENGTH if count >= self.max_new_tokens else TokenStatus.RUN
        return code, count - self.restart - self.detector.num_settled

    def say(self, text: str, log_probability: float = SURE):
        """Push a text byte by byte until something happens; the reason and what was streamed."""
        streamed = ""
        for token in TOKENIZER.encode_plain(text):
            before = len(self.answer.tokens)
            reason = self.push(token, log_probability)
            if reason or len(self.answer.tokens) <= before:
                return reason, streamed
            streamed += self.answer.settled_text()
        return None, streamed


def test_text_streams_as_it_comes_and_whole_characters_only():
    page = Page()
    answer = page.answer
    tokens = TOKENIZER.encode_plain("aß")
    shown = []
    for token in tokens:
        page.push(token)
        shown.append(answer.settled_text())
    assert shown == ["a", "", "ß"]
    assert answer.finish() == ""
    assert answer.text == "aß"


def test_a_character_cut_off_by_the_end_becomes_a_replacement():
    page = Page()
    answer = page.answer
    page.push(TOKENIZER.encode_plain("ß")[0])
    assert answer.settled_text() == ""
    assert answer.finish() == answer.text == "�"


def test_a_repeat_is_held_back_and_released_when_it_breaks():
    page = Page()
    _, streamed = page.say("x=====")
    assert streamed == "x=="
    assert page.say("y")[1] == "===y"


def test_a_loop_goes_back_to_its_first_period_and_forbids_the_way_in():
    page = Page()
    answer = page.answer
    reason, streamed = page.say("start " + "abcd" * 9)
    assert reason is None
    assert len(answer.tokens) == len("start abcd") + 1
    assert streamed == "start abcda"
    newest, forbidden = TOKENIZER.encode_plain("ab")
    assert page.rewind == Rewind(len("start abcda"), newest, forbidden)


def test_a_second_attempt_that_ends_by_itself_is_the_answer():
    page = Page()
    answer = page.answer
    _, streamed = page.say("start " + "abcd" * 9)
    assert page.say(" and on", UNSURE) == (None, "")
    assert page.push(TOKENIZER.eos_id, UNSURE) is FinishReason.STOP
    assert streamed + answer.finish() == answer.text == "start abcda and on"
    assert len(answer.tokens) == len("start abcda and on")


@pytest.mark.parametrize(("log_probability", "text"), [(SURE, "start abcda nowxyz"), (UNSURE, "start abcda")])
def test_a_second_loop_ends_the_page_and_the_better_text_stays(log_probability, text):
    page = Page()
    answer = page.answer
    page.say("start " + "abcd" * 9)
    reason, _ = page.say(" now" + "xyz" * 9, log_probability)
    assert reason is FinishReason.REPETITION
    answer.finish()
    assert answer.text == text
    assert len(answer.tokens) == len(text)


@pytest.mark.parametrize(("max_new_tokens", "tokens"), [(50, 50), (200, 11 + 64)])
def test_a_second_attempt_without_end_is_repetition_and_ends_early_if_hopeless(max_new_tokens, tokens):
    page = Page(max_new_tokens)
    answer = page.answer
    page.say("start " + "abcd" * 9)
    text = "".join(chr(ord("0") + n % 70) for n in range(189))
    reasons = [page.push(token, UNSURE) for token in TOKENIZER.encode_plain(text)[: tokens - 11]]
    assert reasons == [None] * (tokens - 12) + [FinishReason.REPETITION]
    answer.finish()
    assert answer.text == "start abcda"


def test_the_longest_answer_ends_with_length():
    page = Page(max_new_tokens=4)
    answer = page.answer
    assert page.say("abcdef")[0] is FinishReason.LENGTH
    answer.finish()
    assert answer.text == "abcd"


def test_confidence_is_that_of_the_tokens_kept():
    page = Page()
    answer = page.answer
    page.say("ab", math.log(0.5))
    page.push(TOKENIZER.eos_id, math.log(0.125))
    assert answer.confidence == pytest.approx(0.5 ** (5 / 3))
    assert answer.min_confidence == pytest.approx(0.125)
    assert Page().answer.min_confidence == 0


def test_scores_are_those_of_the_tokens_kept_at_their_places():
    page = Page()
    page.say("a\u20acb", math.log(0.5))
    page.push(TOKENIZER.eos_id, math.log(0.125))
    page.answer.finish()
    scores = page.answer.token_scores()
    assert len(scores.starts) == len(scores.ends) == len(page.answer.tokens)
    assert (scores.starts[0], scores.ends[-1]) == (0, len(page.answer.text))
    assert set(scores.log_probabilities) == {math.log(0.5)}


def test_scores_end_where_a_loop_was_cut_off():
    page = Page(max_new_tokens=50)
    page.say("start " + "abcd" * 9)
    for token in TOKENIZER.encode_plain("".join(chr(ord("0") + n % 70) for n in range(60))):
        if page.push(token, UNSURE) is not None:
            break
    page.answer.finish()
    scores = page.answer.token_scores()
    assert scores.ends[-1] == len(page.answer.text) == len("start abcda")
    assert UNSURE not in scores.log_probabilities
