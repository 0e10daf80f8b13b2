"""The most probable tokens at each place: both runners report those of the model, to the rows that ask."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from service.engine.protocol import MAX_ALTERNATIVES, SequenceFailure
from service.engine.sequence import Answer, TokenBytes
from shared.contract.answer import FinishReason
from shared.contract.repetition import LoopRule
from tests.unit.service.engine.gpu_tiny import paged_engine
from tests.unit.service.engine.test_engine import ALONE, MODEL, NEVER, TOKENIZER, looping_model, outcomes, request_of
from tests.unit.service.engine.tiny import drain, tiny_engine, tiny_request

ENGINES = pytest.mark.parametrize("make", [tiny_engine, paged_engine])


def asking(request, count: int, **params):
    params = replace(request.params, num_alternatives=count, **params)
    return replace(request, params=params, wants_token_scores=True)


def expected(request, count: int) -> list[list[tuple[bytes, float]]]:
    """From the logits of transformers' own generation."""
    page = request.page
    ids = TOKENIZER.encode_prompt(page.plan, request.prompt)
    out = MODEL.generate(
        torch.tensor([ids]),
        global_views_BHWC=torch.from_numpy(page.global_view_HWC)[None],
        tiles_THWC=torch.from_numpy(page.tiles_THWC),
        tile_grids_B2=torch.tensor([[page.plan.tile_columns, page.plan.tile_rows]]),
        max_new_tokens=request.params.max_new_tokens,
        do_sample=False,
        eos_token_id=TOKENIZER.eos_id,
        pad_token_id=TOKENIZER.pad_id,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tops = []
    for token, logits_1V in zip(out.sequences[0, len(ids) :].tolist(), out.logits, strict=True):
        if token != TOKENIZER.eos_id:
            top = logits_1V[0].log_softmax(dim=-1).topk(count)
            pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            tops.append([(TOKENIZER.token_bytes(each), value) for each, value in pairs])
    return tops


@ENGINES
def test_they_are_the_models_for_the_rows_that_ask(make):
    counts = {0: 5, 1: 0, 4: MAX_ALTERNATIVES}
    engine = make(MODEL, loop_rule=NEVER)
    for seed, count in counts.items():
        engine.submit(asking(request_of(seed), count))
        engine.step()
    found = outcomes(drain(engine))
    for seed, count in counts.items():
        result = found[f"page-{seed}"]
        assert result.text == ALONE[f"page-{seed}"].text
        scores = result.token_scores
        if not count:
            assert scores.alternatives == ()
            continue
        wanted = expected(request_of(seed), count)
        assert len(scores.alternatives) == len(wanted) == len(scores.log_probabilities)
        for tops, log_probability, right in zip(scores.alternatives, scores.log_probabilities, wanted, strict=True):
            assert tops[0][1] == log_probability
            assert [text for text, _ in tops] == [text for text, _ in right]
            assert np.allclose([log for _, log in tops], [log for _, log in right], atol=1e-4)


@ENGINES
def test_a_second_attempt_has_its_own(make):
    engine = make(looping_model(), loop_rule=LoopRule(min_tokens=12, min_repeats=3))
    for seed in range(3):
        engine.submit(asking(tiny_request(f"page-{seed}", seed=seed, max_new_tokens=60), 3))
    results = outcomes(drain(engine)).values()
    assert FinishReason.REPETITION in {result.finish_reason for result in results}
    for result in results:
        scores = result.token_scores
        assert len(scores.alternatives) == len(scores.log_probabilities) == result.completion_tokens
        for tops, log_probability in zip(scores.alternatives, scores.log_probabilities, strict=True):
            # A banned token is more probable than the one that was chosen.
            assert len(tops) == 3
            assert tops[0][1] >= log_probability - 1e-6


@ENGINES
def test_a_number_out_of_range_is_refused(make):
    engine = make(MODEL)
    for count in (-1, MAX_ALTERNATIVES + 1):
        engine.submit(asking(request_of(0), count))
        (event,) = drain(engine)
        assert isinstance(event, SequenceFailure)


def test_of_equal_tokens_the_chosen_comes_first():
    answer = Answer(TokenBytes(TOKENIZER), NEVER)
    first, second, third = (TOKENIZER.encode_plain(letter)[0] for letter in "abc")
    rounding = 1e-7
    for tops in (
        [(first, -1.0), (second, -1.0)],
        [(second, -1.0), (first, -1.0)],
        # Which of several equal ones are reported is left open.
        [(second, -1.0), (third, -1.0)],
    ):
        answer.note(tops, first, -1.0 - rounding)
        answer.push(first, -1.0 - rounding, 0, 0)
    answer.note([(second, -0.5), (third, -1.0)], first, -3.0)
    answer.push(first, -3.0, 0, 0)
    answer.finish()
    alternatives = answer.token_scores().alternatives
    assert {tops[0] for tops in alternatives[:3]} == {(b"a", -1.0 - rounding)}
    assert {len(tops) for tops in alternatives} == {2}
    assert alternatives[3] == ((b"b", -0.5), (b"c", -1.0))
