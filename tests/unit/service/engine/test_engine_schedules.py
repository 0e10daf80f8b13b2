"""Ten thousand random schedules over a runner without tensors: every request gets its own answer, once."""

import random
from dataclasses import dataclass, field

import numpy as np

from service.engine.engine import TorchEngine
from service.engine.loader import EngineLimits
from service.engine.protocol import (
    EngineInfo,
    FinishReason,
    PreparedPage,
    SequenceDelta,
    SequenceFailure,
    SequenceRequest,
    SequenceResult,
)
from service.engine.repetition import LoopRule
from service.engine.runner import Choice
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, ViewPlan
from tests.unit.service.engine.tiny import tiny_tokenizer

SCHEDULES = 10_000
TOKENIZER = tiny_tokenizer()
LETTERS = TOKENIZER.encode_plain("abcdefghijklmnopqrstuvwxyz")
PROMPT_TOKENS = 3 + 2
INFO = EngineInfo("m", "cpu", "none", GeometryConfig(), 40, 60, 3)


def script(ink: int) -> list[Choice]:
    """What the page of this ink says; every seventh page is a fault, every fifth never ends."""
    choose = random.Random(ink)
    choices = [Choice(choose.choice(LETTERS), -0.5) for _ in range(choose.randint(0, 12))]
    if ink % 7 == 0:
        return [*choices, Choice(LETTERS[0], float("nan"))]
    if ink % 5 == 0:
        return choices + [Choice(LETTERS[1], -0.5)] * 60
    return [*choices, Choice(TOKENIZER.eos_id, -0.5)]


@dataclass
class ScriptRunner:
    """Rows that read from the script of the page whose views they were given."""

    rows: list[list] = field(default_factory=list)
    most_rows: int = 0
    most_views: int = 0

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    def encode(self, views):
        self.most_views = max(self.most_views, len(views))
        return [int(view.flat[0]) for view in views]

    def assemble(self, plan, tokens):
        assert len(tokens) == 1 + plan.num_tiles
        assert len(set(tokens)) == 1
        return tokens[0]

    def prefill(self, prompts):
        chosen = []
        for prompt in prompts:
            assert len(prompt.ids) == PROMPT_TOKENS + 1
            choices = script(prompt.features_LD)
            self.rows.append([choices, 1, choices[0].token])
            chosen.append(choices[0])
        self.most_rows = max(self.most_rows, len(self.rows))
        return chosen

    def decode(self, tokens, banned):
        assert [row[2] for row in self.rows] == tokens
        assert not banned
        for row in self.rows:
            row[2] = row[0][row[1]].token
            row[1] += 1
        return [row[0][row[1] - 1] for row in self.rows]

    def close_row(self, row):
        self.rows[row] = self.rows[-1]
        self.rows.pop()

    def device_memory_bytes(self):
        return 0


def request_of(name: str, ink: int, tiles: int, max_new_tokens: int) -> SequenceRequest:
    plan = ViewPlan(Mode.GUNDAM, 1, 1, tiles, 1 if tiles else 0, 3)
    page = PreparedPage(plan, np.full((1, 1, 3), ink, np.uint8), np.full((tiles, 1, 1, 3), ink, np.uint8))
    return SequenceRequest(name, page, "\nq", max_new_tokens, "m")


def check_answer(event, ink: int, max_new_tokens: int) -> None:
    said = script(ink)
    letters = [c.token for c in said if c.is_valid and c.token != TOKENIZER.eos_id]
    if ink % 7 == 0 and len(letters) < max_new_tokens:
        assert isinstance(event, SequenceFailure)
        return
    assert isinstance(event, SequenceResult)
    assert event.text == TOKENIZER.decode(letters[:max_new_tokens])
    ends = len(letters) < max_new_tokens
    assert event.finish_reason is (FinishReason.STOP if ends else FinishReason.LENGTH)


def run_schedule(seed: int) -> None:
    choose = random.Random(seed)
    limits = EngineLimits(
        batch_size=choose.randint(1, 4),
        kv_tokens=choose.choice([None, 70]),
        views_per_step=choose.randint(1, 3),
        prefill_tokens_per_step=choose.choice([1, 12, 100]),
        loop_rule=LoopRule(max_period=2, min_tokens=1000),
    )
    runner = ScriptRunner()
    engine = TorchEngine(runner, TOKENIZER, INFO, limits, clock=lambda: 0.0)
    asked, cancelled, answers, shown = {}, set(), {}, {}
    while len(asked) < 5 or engine.has_work:
        if len(asked) < 5 and choose.random() < 0.5:
            name = str(len(asked))
            asked[name] = (choose.randrange(250), choose.randint(1, 30))
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
    assert runner.num_rows == 0
    assert runner.most_rows <= limits.batch_size
    assert runner.most_views <= limits.views_per_step
    assert answers.keys() == asked.keys() - cancelled
    for name, event in answers.items():
        check_answer(event, *asked[name])
        if isinstance(event, SequenceResult):
            assert shown.get(name, "") == event.text


def test_every_request_gets_its_own_answer_once():
    for seed in range(SCHEDULES):
        run_schedule(seed)
