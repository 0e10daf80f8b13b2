"""Sampling, from the rule to the text: both runners draw the same, whatever runs beside."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.engine.cpu.model_runner import ModelRunner, Prompt
from service.engine.gpu.state import AnswerState
from service.engine.kernels.reference import sampler as choice
from service.engine.protocol import MAX_SEED, FinishReason, SequenceFailure
from service.engine.repetition import LoopRule, RepetitionGuard
from service.engine.sampling import Draw, draw_scores
from tests.unit.service.engine.gpu_tiny import paged_engine
from tests.unit.service.engine.test_engine import ALONE, MODEL, NEVER, looping_model, outcomes, request_of
from tests.unit.service.engine.tiny import drain, tiny_engine, tiny_request

SHORT = LoopRule(min_tokens=12, min_repeats=3)
ENGINES = pytest.mark.parametrize("make", [tiny_engine, paged_engine])


def drawn(request, seed: int, temperature: float = 1.0):
    return replace(request, params=replace(request.params, temperature=temperature, seed=seed))


def sampled(number: int, temperature: float = 1.0):
    """The page of `request_of(number)`, drawn with a seed of its own, far beyond 32 bits."""
    return drawn(request_of(number), 2**40 + number, temperature)


def read(make, requests, **limits):
    engine = make(MODEL, **{"loop_rule": NEVER, **limits})
    for request in requests:
        engine.submit(request)
    return outcomes(drain(engine))


def texts(found):
    return {name: result.text for name, result in found.items()}


DRAWN = {}
for number in range(8):
    DRAWN |= read(tiny_engine, [sampled(number)])


def test_what_is_drawn_is_not_what_is_likeliest():
    assert all(DRAWN[name].text != ALONE[name].text for name in ALONE)


def test_draws_follow_the_softmax_at_their_temperature():
    """Chi-square over 20 000 seeds: at most its 99.9th percentile for 5 degrees of freedom."""
    logits_V = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, float("-inf"), 1.5])
    count = 20_000
    for temperature in (0.5, 1.0, 2.0):
        seeds_B1 = torch.arange(count)[:, None] * 0x9E3779B97F4A7C15 % MAX_SEED
        temperature_B1, count_B1 = torch.full((count, 1), temperature), torch.full((count, 1), 3)
        scores_BV = draw_scores(logits_V.expand(count, -1), temperature_B1, seeds_B1, count_B1)
        seen_V = torch.bincount(scores_BV.argmax(dim=-1), minlength=len(logits_V)).double()
        wanted_V = (logits_V / temperature).softmax(dim=-1).double() * count
        assert seen_V[5] == 0
        possible = wanted_V > 0
        assert float(((seen_V - wanted_V)[possible] ** 2 / wanted_V[possible]).sum()) < 20.5


def test_tokens_of_one_seed_are_drawn_independently():
    """Of two tokens as likely as each other, neighbours agree half of the time: within 4 standard deviations."""
    count = 10_000
    seed_B1, temperature_B1 = torch.full((count, 1), 5), torch.ones(count, 1)
    scores_BV = draw_scores(torch.zeros(count, 2), temperature_B1, seed_B1, torch.arange(count)[:, None])
    drawn_B = scores_BV.argmax(dim=-1)
    assert abs(int((drawn_B[1:] == drawn_B[:-1]).sum()) - count / 2) < 4 * math.sqrt(count / 4)


@pytest.mark.parametrize("num_banned", [0, 3])
def test_the_model_runner_chooses_by_the_rule_of_the_kernels(num_banned):
    """`_choose` on the same logits as `kernels.choice.choose`, greedy rows among the others, with bans and without."""
    rows, vocabulary = 6, 50
    generator = torch.Generator().manual_seed(4)
    runner = ModelRunner(MODEL, max_rows=rows, max_tokens=32)
    state = AnswerState.create(rows, 40, LoopRule(min_tokens=10_000), vocabulary, "cpu")
    temperatures = [0.0, 0.3, 1.0, 0.0, 2.0, 1e-9]
    seeds = [0, MAX_SEED, 7, 9, 2**33 + 1, 3]
    state.open(list(range(rows)), [3] * rows, [40] * rows, temperatures, seeds)
    slots = torch.arange(rows)
    if num_banned:
        state.guard_S[:rows] = True
    for count in range(12):
        logits = torch.randn(rows, vocabulary, generator=generator) * 2
        banned = {}
        if num_banned:
            state.forbidden_S[:rows] = logits.argmax(dim=-1).int()
            banned = {row: [int(state.forbidden_S[row])] for row in range(rows)}
        draws = {row: Draw(temperatures[row], seeds[row], count) for row in range(rows) if temperatures[row]}
        report = choice.choose(logits, slots, state, LoopRule(min_tokens=10_000))
        choices = runner._choose(logits.clone(), banned, draws)
        assert [each.token for each in choices] == report[:, 0].tolist()
        logs = report[:, 1].contiguous().view(torch.float32).tolist()
        assert [each.log_probability for each in choices] == pytest.approx(logs, abs=1e-5)


def test_confidence_is_the_models_own_at_temperature_1():
    runner = ModelRunner(MODEL, max_rows=2, max_tokens=32)
    prompt = [0, 20, 21, 22]
    greedy, hot = runner.prefill(
        [Prompt(prompt, torch.zeros(0, 32)), Prompt(prompt, torch.zeros(0, 32), draw=Draw(2.0, 11, 0))]
    )
    with torch.inference_mode():
        embeds = MODEL.embed_inputs(torch.tensor([prompt]), [])
        logits = MODEL.lm_head(MODEL.model.decode(embeds, torch.arange(4)[None])[0])
    logs = logits[0, -1].log_softmax(dim=-1)
    assert greedy.token != hot.token
    for found in (greedy, hot):
        assert found.log_probability == pytest.approx(float(logs[found.token]), abs=1e-4)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    make=st.sampled_from([tiny_engine, paged_engine]),
    order=st.permutations(range(8)),
    sampling=st.sets(st.integers(0, 7)),
    pauses=st.lists(st.integers(0, 6), min_size=8, max_size=8),
    batch_size=st.integers(1, 5),
    views_per_step=st.integers(1, 6),
)
def test_text_depends_on_page_and_seed_and_not_on_company_or_slot(make, order, sampling, pauses, **limits):
    engine = make(MODEL, loop_rule=NEVER, **limits)
    events = []
    for number, pause in zip(order, pauses, strict=True):
        engine.submit(sampled(number) if number in sampling else request_of(number))
        for _ in range(pause):
            events += engine.step()
            engine.check_integrity()
    expected = {f"page-{number}": (DRAWN if number in sampling else ALONE)[f"page-{number}"] for number in range(8)}
    found = outcomes(events + drain(engine))
    assert texts(found) == texts(expected)
    for name, result in found.items():
        assert result.confidence == pytest.approx(expected[name].confidence, rel=1e-3)


@ENGINES
def test_another_seed_draws_another_text(make):
    found = [read(make, [drawn(request_of(0), seed)])["page-0"].text for seed in (1, 2, 2**32 + 1, 1)]
    assert found[0] == found[3]
    assert len(set(found)) == 3


@ENGINES
def test_nearly_no_temperature_is_greedy(make):
    assert texts(read(make, [sampled(number, 1e-9) for number in range(8)])) == texts(ALONE)


@ENGINES
@pytest.mark.parametrize("changes", [{"temperature": -1.0}, {"temperature": float("nan")}, {"temperature": 2.5},
                                     {"seed": -1}, {"seed": MAX_SEED + 1}])  # fmt: skip
def test_what_cannot_be_drawn_fails_alone(make, changes):
    found = read(make, [replace(request_of(1), params=replace(request_of(1).params, **changes)), request_of(2)])
    assert isinstance(found["page-1"], SequenceFailure)
    assert found["page-2"].text == ALONE["page-2"].text


def test_a_second_attempt_goes_on_drawing(monkeypatch):
    """Both runners give the same second attempt, which other seeds give otherwise."""
    rewinds = []
    remember = RepetitionGuard.__init__

    def counted(self, *arguments, **options):
        rewinds.append(1)
        remember(self, *arguments, **options)

    monkeypatch.setattr(RepetitionGuard, "__init__", counted)
    found = {}
    for make in (tiny_engine, paged_engine):
        engine = make(looping_model(), loop_rule=SHORT, max_new_tokens=200)
        for seed in range(6):
            engine.submit(drawn(tiny_request(f"s{seed}", seed=1, max_new_tokens=200), seed, 0.2))
        found[make] = {name: (r.text, r.finish_reason) for name, r in outcomes(drain(engine)).items()}
    assert rewinds
    assert found[tiny_engine] == found[paged_engine]
    assert FinishReason.REPETITION in {reason for _, reason in found[tiny_engine].values()}
