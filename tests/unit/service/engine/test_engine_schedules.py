"""Ten thousand random schedules over a runner without tensors: every request gets its own answer, once.

The runner computes when it is told to and reports when it is asked, with as many steps between as its depth; what has
ended goes on being silent, as on a GPU. Loops and second attempts are part of the scripts.
"""

import itertools
import random
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest

from service.engine.config import EngineLimits
from service.engine.engine import TorchEngine
from service.engine.protocol import (
    EngineInfo,
    SamplingParams,
    SequenceDelta,
    SequenceFailure,
    SequenceRequest,
    SequenceResult,
)
from service.engine.runner import StepOutput
from shared.contract.answer import FinishReason, TokenStatus
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, ViewPlan
from tests.unit.service.engine.tiny import tiny_tokenizer

SCHEDULES = 10_000
TOKENIZER = tiny_tokenizer()
LETTERS = TOKENIZER.encode_plain("abcdefghijklmnopqrstuvwxyz")
PROMPT_TOKENS = 3 + 2
INFO = EngineInfo("m", "cpu", "none", GeometryConfig(), 40, 60, 3)


SURE = -0.01
INKS = 250
FIRST, SECOND = LETTERS[:13], LETTERS[13:]
"""Letters of a first and of a second attempt, so that a token of the wrong one is seen."""
WORDS = [
    [[choose.choice(letters) for _ in range(choose.randint(2, 12))] for choose in map(random.Random, range(INKS))]
    for letters in (FIRST, SECOND)
]


@dataclass(frozen=True)
class Script:
    """What the page of an ink says; some are faults, some never end, some loop and say something else then."""

    ink: int

    @property
    def is_fault(self) -> bool:
        return self.ink % 7 == 0

    @property
    def is_endless(self) -> bool:
        return self.ink % 5 == 0

    @property
    def is_loop(self) -> bool:
        return self.ink % 3 == 0 and not self.is_fault and not self.is_endless

    def words(self, attempt: int) -> list[int]:
        return WORDS[attempt][self.ink]

    def turn(self, position: int, attempt: int, limit: int, count: int) -> tuple[int, TokenStatus, int]:
        """Token, code and last column of an attempt's token at this position."""
        words = self.words(attempt)
        if position < len(words):
            # A loop that is about to be certain is held back, as the engine never shows what a loop takes back.
            run = 4 if self.is_loop and not attempt and position == len(words) - 1 else 0
            return words[position], TokenStatus.LENGTH if count + 1 >= limit else TokenStatus.RUN, run
        if self.is_fault:
            return 0, TokenStatus.FAULT, 0
        if self.is_loop and not attempt and count + 1 < limit:
            return FIRST[0], TokenStatus.LOOP, count - 1
        if self.is_endless or (self.is_loop and not attempt):
            return LETTERS[1], TokenStatus.LENGTH if count + 1 >= limit else TokenStatus.RUN, 0
        return TOKENIZER.eos_id, TokenStatus.STOP, 0

    def expected(self, limit: int) -> tuple[str, FinishReason] | None:
        """Text and reason, or None for a failure."""
        tokens: list[int] = []
        attempt = position = 0
        while True:
            token, code, keep = self.turn(position, attempt, limit, len(tokens))
            if code is TokenStatus.FAULT:
                return None
            if code is TokenStatus.STOP:
                return TOKENIZER.decode(tokens), FinishReason.STOP
            tokens.append(token)
            position += 1
            if code is TokenStatus.LENGTH:
                reason = FinishReason.REPETITION if attempt else FinishReason.LENGTH
                return TOKENIZER.decode(tokens), reason
            if code is TokenStatus.LOOP:
                del tokens[keep:]
                attempt, position = 1, 0


@dataclass
class Seat:
    """What a device keeps of a slot."""

    script: Script
    limit: int
    count: int = 0
    attempt: int = 0
    position: int = 0
    is_done: bool = False

    def choose(self) -> tuple[int, float, int, int]:
        if self.is_done:
            return 0, 0.0, TokenStatus.IDLE, 0
        token, code, aux = self.script.turn(self.position, self.attempt, self.limit, self.count)
        self.is_done = code is not TokenStatus.RUN
        self.position += 1
        self.count += code is not TokenStatus.STOP
        return token, float("nan") if code is TokenStatus.FAULT else SURE, code, aux


@dataclass
class ScriptRunner:
    """Slots that read from the script of the page whose views they were given."""

    depth: int
    kv_tokens: int
    block_tokens: int
    seats: dict[int, Seat] = field(default_factory=dict)
    owed: deque[StepOutput] = field(default_factory=deque)
    kept_answer_tokens: int | None = None
    most_slots: int = 0
    most_views: int = 0

    def warm_up(self) -> None:
        pass

    def prepare(self, page, geometry):
        return [page.global_view_HWC, *page.tiles_THWC]

    def encode(self, views):
        self.most_views = max(self.most_views, len(views))
        return [int(view.flat[0]) for view in views]

    def assemble(self, pages):
        ((plan, tokens),) = pages
        assert len(tokens) == 1 + plan.num_tiles
        assert len(set(tokens)) == 1
        return tokens[0]

    def open(self, rows):
        for row in rows:
            assert len(row.prompt_ids) == PROMPT_TOKENS + 1
            assert row.slot not in self.seats
            self.seats[row.slot] = Seat(Script(row.features_LD), row.params.max_new_tokens)
        self.most_slots = max(self.most_slots, len(self.seats))
        self.launch([row.slot for row in rows])

    def launch(self, slots):
        assert len(set(slots)) == len(slots) > 0
        chosen = [self.seats[slot].choose() for slot in slots]
        report = StepOutput(*([row[column] for row in chosen] for column in range(4)))
        self.owed.append(report)
        assert len(self.owed) <= self.depth + 2

    def collect(self):
        return self.owed.popleft() if self.owed else None

    def rewind(self, slot, *, kept, newest_token, forbidden):
        seat = self.seats[slot]
        assert seat.is_done
        assert seat.count - kept == 2
        assert forbidden != newest_token or kept > 0
        seat.count, seat.attempt, seat.position, seat.is_done = kept, 1, 0, False

    def close(self, slot):
        del self.seats[slot]

    def device_memory_bytes(self):
        return 0

    def check_integrity(self):
        pass


def request_of(name: str, ink: int, tiles: int, max_new_tokens: int) -> SequenceRequest:
    plan = ViewPlan(Mode.GUNDAM, 1, 1, tiles, 1 if tiles else 0, 3)
    page = PageViews(plan, np.full((1, 1, 3), ink, np.uint8), np.full((tiles, 1, 1, 3), ink, np.uint8))
    return SequenceRequest(name, page, "\nq", SamplingParams(max_new_tokens), "m")


def check_answer(event, ink: int, max_new_tokens: int) -> None:
    expected = Script(ink).expected(max_new_tokens)
    if expected is None:
        assert isinstance(event, SequenceFailure)
    else:
        assert isinstance(event, SequenceResult)
        assert (event.text, event.finish_reason) == expected


def run_schedule(seed: int) -> None:
    choose = random.Random(seed)
    limits = EngineLimits(
        batch_size=choose.randint(1, 4),
        kv_tokens=choose.choice([None, 70]),
        views_per_step=choose.randint(1, 3),
        prefill_tokens_per_step=choose.choice([1, 12, 100]),
        idle_multiplier=choose.choice([1, 3]),
        loop_rule=LoopRule(max_period=2, min_tokens=1000),
    )
    runner = ScriptRunner(
        depth=choose.randint(0, 2), kv_tokens=limits.kv_tokens or 180, block_tokens=choose.choice([1, 8])
    )
    ticks = itertools.count()
    engine = TorchEngine(runner, TOKENIZER, INFO, limits, clock=lambda: 0.006 * next(ticks))
    asked, cancelled, answers, shown = {}, set(), {}, {}
    while len(asked) < 5 or engine.has_work:
        if len(asked) < 5 and choose.random() < 0.5:
            name = str(len(asked))
            asked[name] = (choose.randrange(INKS), choose.randint(1, 30))
            engine.submit(request_of(name, asked[name][0], choose.randint(0, 3), asked[name][1]))
        if asked and choose.random() < 0.05:
            name = choose.choice(list(asked))
            engine.cancel(name)
            cancelled |= {name} - answers.keys()
        for event in engine.step():
            assert event.sequence_id not in answers
            assert event.sequence_id not in cancelled
            if isinstance(event, SequenceDelta):
                shown[event.sequence_id] = shown.get(event.sequence_id, "") + event.text
            else:
                answers[event.sequence_id] = event
        engine.check_integrity()
    assert not runner.seats
    assert runner.most_slots <= limits.batch_size
    assert runner.most_views <= limits.views_per_step * limits.idle_multiplier
    assert answers.keys() == asked.keys() - cancelled
    for name, event in answers.items():
        check_answer(event, *asked[name])
        if isinstance(event, SequenceResult):
            assert shown.get(name, "") == event.text


@pytest.mark.slow
def test_every_request_gets_its_own_answer_once():
    for seed in range(SCHEDULES):
        run_schedule(seed)
