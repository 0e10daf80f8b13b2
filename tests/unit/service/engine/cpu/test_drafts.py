"""Drafted tokens change nothing but the number of steps: ids, logarithms, texts and ends are those without them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from service.engine.config import EngineLimits
from service.engine.cpu import compiled_decoder, runner
from service.engine.cpu.bands import PartialFeatures
from service.engine.cpu.compiled_decoder import MOST_DRAFTS, CompiledDecoder
from service.engine.cpu.loaded_library import NoLibraryError
from service.engine.cpu.runner import CpuRunner
from service.engine.engine import TorchEngine
from service.engine.factory import make_engine
from service.engine.protocol import (
    EngineInfo,
    SamplingParams,
    SequenceDelta,
    SequenceEvent,
    SequenceFailure,
    SequenceRequest,
    SequenceResult,
)
from shared.contract.answer import FinishReason, TokenJudge
from shared.contract.prompts import Task, prompt_for
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.draft_head import DraftHead
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.pages import assemble_pages
from shared.deepseek_ocr.quantisation import dequantise_rows, quantise_rows
from tests.support.nano import needs_nano
from tests.unit.service.engine.cpu.test_bands import LIMITS, LINES, checkpoint, page_of, read, words
from tests.unit.service.engine.cpu.test_compiled_step import compiled, library, needs_library
from tests.unit.service.engine.cpu.test_packed_decoder import randomised
from tests.unit.service.engine.tiny import GEOMETRY, PROMPT, drain, tiny_config, tiny_page, tiny_tokenizer

__all__ = ["compiled", "library"]

TOKENIZER = tiny_tokenizer()
VOCABULARY, WIDTH = 288, 128
EASY_LOOPS = LoopRule(min_tokens=12, min_repeats=3)
ROWS = 4
"""Which have several drafts each in these tests."""


class CanvasRunner(CpuRunner):
    """Reads every page as if its view had been a canvas."""

    def assemble(self, pages) -> PartialFeatures:
        features_LD = assemble_pages(self._model, pages)
        return PartialFeatures(features_LD, range(len(features_LD)), len(features_LD))


def model_of(seed: int) -> DeepseekOcrForConditionalGeneration:
    """Two heads of 64 and a language head of int8 rows; its answers loop and go on."""
    torch.manual_seed(seed)
    config = tiny_config()
    config.text_config.hidden_size, config.text_config.vocab_size = WIDTH, VOCABULARY
    model = randomised(DeepseekOcrForConditionalGeneration(config).eval())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.5 if parameter.ndim > 1 else 1)
        model.lm_head.weight[TOKENIZER.vocab_size :] = 0
        model.lm_head.weight.copy_(dequantise_rows(*quantise_rows(model.lm_head.weight)))
    return model


def head_of(seed: int, width: int = WIDTH) -> DraftHead:
    torch.manual_seed(seed)
    return DraftHead(width, 1e-6).eval()


def engine_of(
    model,
    draft_head: DraftHead | None,
    rule: LoopRule = EASY_LOOPS,
    *,
    eos_id: int = TOKENIZER.eos_id,
    batch_size: int = ROWS,
) -> TorchEngine:
    # One prompt at a time, as those of a batch are rounded together.
    limits = EngineLimits(
        batch_size=batch_size,
        max_new_tokens=48,
        max_sequence_tokens=96,
        prefill_tokens_per_step=1,
        idle_multiplier=1,
        loop_rule=rule,
    )
    made = CanvasRunner(
        model,
        max_rows=limits.batch_size,
        max_tokens=limits.max_sequence_tokens,
        eos_id=eos_id,
        rule=rule,
        growth_tokens=4,
        token_px=16,
        rounds_canvases=True,
        draft_head=draft_head,
    )
    info = EngineInfo("tiny", "cpu", "float32", GEOMETRY, 48, 96, limits.batch_size, steps=made.steps)
    return TorchEngine(made, TOKENIZER, info, limits)


def request_of(page: int, max_new_tokens: int, **params) -> SequenceRequest:
    sampling = SamplingParams(max_new_tokens, **params)
    return SequenceRequest(f"page-{page}", tiny_page(page), PROMPT, sampling, "tiny", wants_token_scores=True)


def requests() -> list[SequenceRequest]:
    """Short and long answers, one that draws and one that wants alternatives."""
    lengths = (1, 2, 3, 4, 20, 48, 48, 48, 30)
    found = [request_of(page, length) for page, length in enumerate(lengths)]
    found.append(request_of(9, 24, temperature=1.0, seed=3))
    found.append(request_of(10, 24, num_alternatives=3))
    return found


def read_all(engine: TorchEngine, joining: int = 2, cancelled: str = "") -> dict[str, SequenceEvent]:
    """Ends of all pages; some join each few steps, and one is cancelled while it runs."""
    waiting, events, texts = requests(), [], dict[str, str]()
    while waiting or engine.has_work:
        for request in waiting[:joining]:
            engine.submit(request)
        del waiting[:joining]
        for _ in range(3):
            events += engine.step()
            engine.check_integrity()
        engine.cancel(cancelled)
    for event in events:
        if isinstance(event, SequenceDelta):
            texts[event.sequence_id] = texts.get(event.sequence_id, "") + event.text
    ends: dict[str, SequenceEvent] = {
        event.sequence_id: event for event in events if not isinstance(event, SequenceDelta)
    }
    for name, end in ends.items():
        if isinstance(end, SequenceResult):
            assert texts.get(name, "") == end.text
    return ends


def told(event: SequenceEvent) -> Any:
    """All of a page's end but its times."""
    return replace(event, timings=None) if isinstance(event, SequenceResult) else event


@dataclass
class Oracle:
    """Drafts what was chosen without drafts, except for a share of tokens."""

    truth: dict[tuple[str, tuple[int, ...]], int]
    wrong: float
    wrong_tokens: tuple[int, ...] = tuple(range(TOKENIZER.vocab_size))
    noise: random.Random = field(default_factory=lambda: random.Random(5))

    def drafts_of(self, runner: CpuRunner, names: dict[int, str]) -> Callable[..., list[list[int]]]:
        def draft(states_BH: Tensor, newest: list[int], count: int) -> list[list[int]]:
            found = []
            for state_H, token in zip(states_BH, newest, strict=True):
                slot, state = next(
                    (slot, each)
                    for slot, each in runner._states.items()
                    if each.newest_state_H is not None and torch.equal(each.newest_state_H, state_H)
                )
                assert state.judge.tokens[-1] == token
                found.append(self._continue(names[slot], list(state.judge.tokens), count))
            return found

        return draft

    def _continue(self, name: str, tokens: list[int], count: int) -> list[int]:
        drafts: list[int] = []
        for _ in range(count):
            token = self.truth.get((name, (*tokens, *drafts)), 0)
            drafts.append(self.noise.choice(self.wrong_tokens) if self.noise.random() < self.wrong else token)
        return drafts


@dataclass
class Watched:
    """What happened in a runner: which page is where, what followed what, and how many steps it took."""

    names: dict[int, str] = field(default_factory=dict)
    truth: dict[tuple[str, tuple[int, ...]], int] = field(default_factory=dict)
    launches: int = 0
    rewinds: int = 0


def watch(engine: TorchEngine, monkeypatch) -> Watched:
    watched = Watched()
    made: Any = engine._runner
    opened, launched, rewound, push = made.open, made.launch, made.rewind, TokenJudge.push

    def open_rows(rows) -> None:
        by_slot = {sequence.slot: name for name, sequence in engine._pages.active.items()}
        for row in rows:
            watched.names[row.slot] = by_slot[row.slot]
        opened(rows)

    def launch(slots) -> None:
        watched.launches += 1
        launched(slots)

    def rewind(slot, **how) -> None:
        watched.rewinds += 1
        rewound(slot, **how)

    def pushed(judge, token):
        slot = next((slot for slot, state in made._states.items() if state.judge is judge), None)
        if slot is not None:
            watched.truth[watched.names[slot], tuple(judge.tokens)] = token
        return push(judge, token)

    monkeypatch.setattr(made, "open", open_rows)
    monkeypatch.setattr(made, "launch", launch)
    monkeypatch.setattr(made, "rewind", rewind)
    monkeypatch.setattr(TokenJudge, "push", pushed)
    return watched


def ending_token(model, monkeypatch) -> int:
    """One that an answer reaches late: a model of random weights hardly ever chooses the tokenizer's own."""
    engine = engine_of(model, None, LoopRule())
    with monkeypatch.context() as patch:
        truth = watch(engine, patch).truth
        engine.submit(request_of(7, 24))
        drain(engine)
    answer = _first(truth, "page-7", 24)
    return max(answer, key=answer.index)


@pytest.fixture(autouse=True)
def many_drafts(monkeypatch):
    monkeypatch.setattr(compiled_decoder, "FEW_DRAFTING_ROWS", ROWS)


@pytest.fixture(autouse=True)
def tiles(monkeypatch):
    """Sets whether the processor has any; most have none."""

    def say(has: bool) -> None:
        monkeypatch.setattr(runner, "has_tiles", lambda: has)

    say(False)
    return say


def compare(
    seed: int, wrong: float | None, monkeypatch, *, ending: bool = False, **how
) -> tuple[Watched, Watched, dict, TorchEngine]:
    """Read all pages without and with drafts; None: those of a head with random weights."""
    model = model_of(seed)
    eos_id = ending_token(model, monkeypatch) if ending else TOKENIZER.eos_id
    plain = engine_of(model, None, eos_id=eos_id)
    assert re.fullmatch("compiled for AVX[-512]+", plain.info.steps)
    with monkeypatch.context() as patch:
        without = watch(plain, patch)
        expected = {name: told(end) for name, end in read_all(plain, **how).items()}
    drafting = engine_of(model, head_of(seed), eos_id=eos_id)
    assert drafting.info.steps.startswith("compiled for AVX")
    assert drafting.info.steps.endswith(f", up to {MOST_DRAFTS} drafts")
    with monkeypatch.context() as patch:
        found = watch(drafting, patch)
        made: Any = drafting._runner
        if wrong is not None:
            draft = Oracle(without.truth, wrong).drafts_of(made, found.names)
            patch.setattr(made._compiled_steps, "draft", draft)
        ends = {name: told(end) for name, end in read_all(drafting, **how).items()}
    assert ends == expected
    return without, found, ends, drafting


@needs_library
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("has_tiles", [False, True])
@pytest.mark.parametrize("wrong", [None, 0.0, 0.4])
def test_pages_are_read_as_without_drafts(seed, wrong, has_tiles, compiled, tiles, monkeypatch):
    tiles(has_tiles)
    without, found, _, engine = compare(seed, wrong, monkeypatch)
    stats = engine.stats()
    assert stats.drafted_tokens > 50
    share = stats.accepted_tokens / stats.drafted_tokens
    if wrong is None:
        assert share < 0.1
    elif wrong == 0.0:
        assert share > 0.8
        # Not more often, as one page draws and has no drafts.
        assert found.launches <= without.launches
    else:
        assert 0.2 < share < 0.8


@needs_library
def test_answers_of_these_tests_loop_and_take_second_attempts(compiled, monkeypatch):
    reasons, rewinds = set(), 0
    for seed in range(3):
        _, found, ends, _ = compare(seed, 0.0, monkeypatch)
        reasons |= {end.finish_reason for end in ends.values()}
        rewinds += found.rewinds
    assert reasons == {FinishReason.LENGTH, FinishReason.REPETITION}
    assert rewinds > 3


@needs_library
@pytest.mark.parametrize("wrong", [0.0, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_an_end_among_the_drafts_ends_the_answer(seed, wrong, compiled, monkeypatch):
    _, _, ends, _ = compare(seed, wrong, monkeypatch, ending=True)
    assert FinishReason.STOP in {end.finish_reason for end in ends.values()}


@needs_library
@pytest.mark.parametrize("cancelled", ["page-5", "page-7"])
def test_a_cancelled_page_changes_no_other(cancelled, compiled, monkeypatch):
    _, _, ends, _ = compare(1, 0.2, monkeypatch, joining=11, cancelled=cancelled)
    assert len(ends) in (10, 11)


@needs_library
@pytest.mark.parametrize("wrong", [0.0, 0.7])
def test_a_draft_that_makes_the_logits_no_numbers_fails_only_where_it_is_right(wrong, compiled, monkeypatch):
    model = model_of(2)
    plain = engine_of(model, None)
    with monkeypatch.context() as patch:
        truth = watch(plain, patch).truth
        read_all(plain)
    poison = truth["page-6", tuple(_first(truth, "page-6", 5))]
    with torch.no_grad():
        model.model.embed_tokens.weight[poison] = float("nan")
    poisoned, drafting = engine_of(model, None), engine_of(model, head_of(2))
    expected = {name: told(end) for name, end in read_all(poisoned).items()}
    assert isinstance(expected["page-6"], SequenceFailure)
    assert any(isinstance(end, SequenceResult) for end in expected.values())
    found = watch(drafting, monkeypatch)
    made: Any = drafting._runner
    oracle = Oracle(truth, wrong, (poison,))
    monkeypatch.setattr(made._compiled_steps, "draft", oracle.drafts_of(made, found.names))
    assert {name: told(end) for name, end in read_all(drafting).items()} == expected


def _first(truth: dict, name: str, count: int) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < count:
        tokens.append(truth[name, tuple(tokens)])
    return tokens


@needs_library
@pytest.mark.parametrize("room", [0, 1, 5])
def test_no_draft_takes_a_cell_that_the_answer_would_not_take(room, compiled, monkeypatch):
    """The cache is made as long as the page, and grows a cell at a time."""
    prompt = len(TOKENIZER.encode_prompt(tiny_page(0).plan, PROMPT))
    longest, model = 20, model_of(0)
    for wrong in (0.0, 0.6):
        plain, drafting = engine_of(model, None, LoopRule()), engine_of(model, head_of(0), LoopRule())
        used: dict[TorchEngine, int] = {}
        ends = []
        truth: dict = {}
        for engine in (plain, drafting):
            made: Any = engine._runner
            cache = made._rounded_lane.cache
            cache.max_tokens, cache._growth_tokens = prompt + longest + room, 1
            with monkeypatch.context() as patch:
                watched = watch(engine, patch)
                if engine is drafting:
                    patch.setattr(made._compiled_steps, "draft", Oracle(truth, wrong).drafts_of(made, watched.names))
                engine.submit(request_of(0, longest))
                ends.append(told(drain(engine)[-1]))
                truth = truth or watched.truth
            used[engine] = cache.capacity
        assert ends[0] == ends[1]
        assert drafting.stats().drafted_tokens > 0
        assert used[drafting] <= used[plain]


@needs_library
def test_rows_that_draw_have_no_drafts(compiled, monkeypatch):
    engine = engine_of(model_of(0), head_of(0), LoopRule())
    engine.submit(request_of(0, 24, temperature=1.0, seed=1))
    drain(engine)
    assert engine.stats().drafted_tokens == 0


@needs_library
def test_a_head_of_another_width_is_not_handed_to_the_library(compiled):
    with pytest.raises(AssertionError):
        CompiledDecoder(model_of(0), 64, head_of(0, WIDTH // 2))


@needs_library
def test_a_language_head_of_other_weights_has_no_drafts(compiled):
    model = model_of(0)
    with torch.no_grad():
        model.lm_head.weight.add_(torch.randn(VOCABULARY, WIDTH) * 1e-3)
    assert "drafts" not in engine_of(model, head_of(0)).info.steps


@pytest.mark.parametrize("has_tiles", [False, True])
def test_without_the_library_there_are_no_drafts(has_tiles, tiles, monkeypatch):
    tiles(has_tiles)

    def refuse():
        raise NoLibraryError("not built")

    monkeypatch.setattr(compiled_decoder, "load", refuse)
    engine = engine_of(model_of(0), head_of(0))
    assert engine.info.steps == "torch (not built)"
    engine.submit(request_of(0, 8))
    drain(engine)
    assert engine.stats().drafted_tokens == 0


@needs_library
@torch.inference_mode()
def test_the_compiled_head_drafts_as_the_module_does(compiled):
    model, head = model_of(3), randomised(head_of(3))
    decoder = CompiledDecoder(model, 64, head)
    states_BH = torch.randn(40, WIDTH)
    newest = torch.randint(20, 200, (40,)).tolist()
    drafts = decoder.draft(states_BH.clone(), newest, 3)
    agreeing, state_BH, token_B = 0, states_BH, torch.tensor(newest)
    for place in range(3):
        state_BH = head(state_BH, model.model.embed_tokens(token_B))
        logits_BV = model.lm_head(state_BH)
        token_B = torch.tensor([row[place] for row in drafts])
        chosen_B = logits_BV.gather(1, token_B[:, None])[:, 0]
        spread_B = logits_BV.std(dim=1)
        # Weights are rounded, so of nearly equal tokens either may be drafted.
        assert ((logits_BV.amax(dim=1) - chosen_B) < 0.1 * spread_B).all()
        agreeing += int((logits_BV.argmax(dim=1) == token_B).sum())
    assert agreeing > 110


@needs_library
def test_many_rows_have_one_draft_each(compiled, monkeypatch):
    engine = engine_of(model_of(0), head_of(0), LoopRule(), batch_size=ROWS + 1)
    made: Any = engine._runner
    fed, several = [], made._compiled_steps.step_several

    def step(tokens, window):
        fed.append((len(tokens), max(map(len, tokens))))
        return several(tokens, window)

    monkeypatch.setattr(made._compiled_steps, "step_several", step)
    for page in range(ROWS + 1):
        engine.submit(request_of(page, 24))
    drain(engine)
    assert max(tokens for rows, tokens in fed if rows <= ROWS) == 3
    assert max(tokens for rows, tokens in fed if rows > ROWS) == 2


@needs_nano
@needs_library
def test_nano_reads_the_same_with_drafts(compiled):
    pages = [page_of(*LINES), page_of(*LINES[:2], height=80), page_of(LINES[3], height=40)]
    limits = replace(LIMITS, rounds_canvases=True)
    expected, _ = read(limits, pages)
    loaded = checkpoint()
    width = loaded.model.config.text_config.hidden_size
    engine = make_engine(replace(loaded, draft_head=head_of(0, width)), limits)
    assert engine.info.steps.endswith(f", up to {MOST_DRAFTS} drafts")
    for number, page in enumerate(pages):
        params = SamplingParams(limits.max_new_tokens)
        engine.submit(SequenceRequest(str(number), page, prompt_for(Task.FREE), params, engine.info.model_id))
    found = sorted((each for each in drain(engine) if isinstance(each, SequenceResult)), key=lambda e: e.sequence_id)
    assert [told(each) for each in found] == [told(each) for each in expected]
    exact, _ = read(LIMITS, pages)
    assert words(found) == words(exact)
