"""`choose` against the host's loop detector and guard, on streams that loop, nearly loop and do neither."""

import random

import pytest
import torch

from service.engine import sampling
from service.engine.gpu.state import AnswerState
from service.engine.kernels.reference import sampler as choice
from service.engine.repetition import LoopDetector, LoopRule, RepetitionGuard
from service.engine.runner import TokenStatus
from tests.support.kernels import DEVICE, GPU_MARK, kernel_set

pytestmark = GPU_MARK
RULE = LoopRule(max_period=7, min_tokens=24, min_repeats=3)
VOCABULARY = 40
EOS = 1
SLOTS = 5


@pytest.fixture(params=["reference", "fused"])
def choose(request):
    return kernel_set(request.param).choose


def make_state(rule: LoopRule = RULE, max_answer_tokens: int = 500) -> AnswerState:
    return AnswerState.create(SLOTS, max_answer_tokens, rule, EOS, DEVICE)


def logits_for(wanted: list[int], generator: torch.Generator) -> torch.Tensor:
    """Noise with the wanted token on top, each row another height."""
    logits = torch.randn(len(wanted), VOCABULARY, generator=generator)
    logits[torch.arange(len(wanted)), torch.tensor(wanted)] = 9.0
    return logits.to(DEVICE)


def columns(report: torch.Tensor) -> list[tuple[int, float, int, int]]:
    """The report as the host reads it."""
    logs = report[:, 1].contiguous().cpu().view(torch.float32).tolist()
    return [(row[0], log, row[2], row[3]) for row, log in zip(report.tolist(), logs, strict=True)]


def stream(kind: int, rng: random.Random) -> list[int]:
    """Tokens of an answer: a random start, then a period with rare slips."""
    start = [rng.randrange(2, VOCABULARY) for _ in range(rng.randrange(0, 40))]
    period = [rng.randrange(2, 6) for _ in range(rng.randrange(1, 9))]
    slip = (0.0, 0.03, 1.0)[kind % 3]
    return start + [
        rng.randrange(2, VOCABULARY) if rng.random() < slip else period[i % len(period)] for i in range(150)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_loops_end_where_the_detector_says(choose, seed):
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    state = make_state()
    slots = [3, 0, 4]
    state.open(slots, [10, 20, 30], [170, 60, 500])
    streams = [stream(seed + i, rng) for i in range(3)]
    detectors = [LoopDetector(RULE) for _ in slots]
    ended: dict[int, TokenStatus] = {}
    for step in range(150):
        wanted = [tokens[step] for tokens in streams]
        report = choose(logits_for(wanted, generator), torch.tensor(slots, device=DEVICE), state, RULE)
        for row, (token, _, code, aux) in enumerate(columns(report)):
            if row in ended:
                assert code == TokenStatus.IDLE
                continue
            keep = detectors[row].push(wanted[row])
            limit = [170, 60, 500][row]
            expected = (
                TokenStatus.LOOP if keep is not None else TokenStatus.LENGTH if step + 1 >= limit else TokenStatus.RUN
            )
            assert (token, code) == (wanted[row], expected)
            if keep is not None:
                assert aux == keep
            else:
                settled = step + 1 - aux if aux >= RULE.suspicion else step + 1
                assert settled == detectors[row].num_settled
            if code != TokenStatus.RUN:
                ended[row] = TokenStatus(code)
                assert state.history_SL[slots[row], : step + 1].tolist() == streams[row][: step + 1]
            else:
                assert int(state.position_S[slots[row]]) == [10, 20, 30][row] + step
                assert int(state.token_S[slots[row]]) == wanted[row]
    assert seed or TokenStatus.LOOP in ended.values()


@pytest.mark.parametrize("seed", range(3))
def test_second_attempt_repeats_no_ngram(choose, seed):
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    state = make_state(LoopRule(max_period=7, min_tokens=400), 900)
    # Few distinct tokens, so that contexts of eleven come back; longer than the window, so that they are forgotten.
    kept = [rng.randrange(2, 4) for _ in range(300 + seed)] if seed else [2, 3] * 20
    state.open([2], [5], [800])
    state.history_SL[2, : len(kept)] = torch.tensor(kept, dtype=torch.int32)
    state.rewind(2, position=5 + len(kept) - 1, kept_tokens=len(kept), newest_token=kept[-1], forbidden=3)
    guard = RepetitionGuard(kept, 3)
    banned_at_all = 0
    for step in range(320):
        logits = torch.randn(1, VOCABULARY, generator=generator) * 0.1
        preferred = [2, 3] if step % 100 < 60 else [2, 3, 4]
        logits[0, preferred] += torch.tensor([6.0, 5.9, 5.8][: len(preferred)])
        banned = guard.banned()
        allowed = logits.clone()
        allowed[0, banned] = float("-inf")
        expected = int(allowed.argmax())
        report = choose(logits.to(DEVICE), torch.tensor([2], device=DEVICE), state, LoopRule(7, 400))
        ((token, log_probability, code, _),) = columns(report)
        if code == TokenStatus.STOP:
            break
        assert token == expected
        assert log_probability == pytest.approx(float(logits[0].log_softmax(dim=-1)[token]), abs=1e-4)
        banned_at_all += len(banned)
        guard.push(token)
    assert banned_at_all > 1
    assert int(state.forbidden_S[2]) == -1


def test_second_attempt_counts_its_own_loops(choose):
    generator = torch.Generator().manual_seed(0)
    rule = LoopRule(max_period=4, min_tokens=8, min_repeats=2)
    state = make_state(rule)
    state.open([1], [3], [100])
    kept = [7, 7, 7]
    state.history_SL[1, :3] = torch.tensor(kept, dtype=torch.int32)
    state.rewind(1, position=5, kept_tokens=3, newest_token=7, forbidden=9)
    detector = LoopDetector(rule)
    for _ in range(8):
        report = choose(logits_for([7], generator), torch.tensor([1], device=DEVICE), state, rule)
        keep = detector.push(7)
    ((_, _, code, aux),) = columns(report)
    assert (code, aux) == (TokenStatus.LOOP, 3 + keep)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter says what NumPy thinks of infinities
def test_ends_of_an_answer_and_scratch_rows(choose):
    generator = torch.Generator().manual_seed(0)
    state = make_state()
    state.open([0, 1, 2], [4, 4, 4], [1, 9, 9])
    scratch = state.scratch_slot
    slots = torch.tensor([0, 1, 2, scratch, scratch], device=DEVICE)
    logits = logits_for([5, EOS, 6, 7, 8], generator)
    logits[2, 30] = float("nan")
    report = columns(choose(logits, slots, state, RULE))
    assert [row[2] for row in report] == [
        TokenStatus.LENGTH,
        TokenStatus.STOP,
        TokenStatus.FAULT,
        TokenStatus.IDLE,
        TokenStatus.IDLE,
    ]
    assert state.done_S.tolist() == [True] * (SLOTS + 1)
    assert state.count_S.tolist() == [1, 0, 0, 0, 0, 0]
    assert state.history_SL[0, 0] == 5
    for value in (float("inf"), float("-inf")):
        state.open([3], [4], [9])
        full = torch.full((1, VOCABULARY), value, device=DEVICE)
        assert columns(choose(full, torch.tensor([3], device=DEVICE), state, RULE))[0][2] == TokenStatus.FAULT


def test_the_lowest_of_equals_wins(choose):
    state = make_state()
    state.open([0], [4], [9])
    logits = torch.zeros(1, VOCABULARY, dtype=torch.bfloat16, device=DEVICE)
    logits[0, [33, 7, 12]] = 3.0
    assert columns(choose(logits, torch.tensor([0], device=DEVICE), state, RULE))[0][0] == 7


def test_sampling_follows_the_distribution_and_not_the_company(choose):
    wanted = torch.tensor([0.0, 0.0, 0.5, 0.3, 0.2])
    logits = wanted.log().mul(0.7)[None].to(DEVICE)
    draws = 256
    state = AnswerState.create(draws, 4, RULE, EOS, DEVICE)
    state.open(list(range(draws)), [1] * draws, [4] * draws, [0.7] * draws, list(range(2**33, 2**33 + draws)))
    tokens = choose(logits.expand(draws, -1).contiguous(), torch.arange(draws, device=DEVICE), state, RULE)[:, 0]
    shares = torch.bincount(tokens.cpu(), minlength=5) / draws
    assert torch.allclose(shares, wanted, atol=0.09)
    alone = AnswerState.create(4, 4, RULE, EOS, DEVICE)
    alone.open([2], [1], [4], [0.7], [2**33 + 17])
    assert choose(logits, torch.tensor([2], device=DEVICE), alone, RULE)[0, 0] == tokens[17]


@pytest.mark.parametrize("first_seed", [0, 2**32 - 2, 2**63 - 32])
def test_every_seed_draws_what_plain_torch_draws(choose, first_seed):
    rows = 32
    logits = torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(8)).to(DEVICE)
    slots, drawn = torch.arange(rows, device=DEVICE), []
    for kernel in (choose, choice.choose):
        state = AnswerState.create(rows, 4, RULE, EOS, DEVICE)
        seeds = list(range(first_seed, first_seed + rows))
        state.open(list(range(rows)), [1] * rows, [4] * rows, [1.3] * rows, seeds)
        drawn.append(kernel(logits, slots, state, RULE)[:, 0].tolist())
    assert drawn[0] == drawn[1]


def test_philox_gives_the_published_numbers():
    # Random123's known answers for the counter and key of zeros, and of ones.
    zero, ones = torch.tensor([0]), torch.tensor([-1])
    assert int(sampling.philox(zero, zero, zero)) == 0x6627E8D5
    assert int(sampling.philox(ones, zero, zero)) != 0x6627E8D5
