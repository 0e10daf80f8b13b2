"""Choosing the next token of every row, Triton: `kernels.reference.sampler.choose` in one kernel.

Owns the Triton `choose`. Programs share a row's vocabulary between them; the last of a row joins their parts and moves
the answer on. A row's result depends on its own logits and slot alone. Used by the engine's single thread.

Shape letters: B rows, V vocabulary, L answer tokens at most, P periods, S slots.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.engine.gpu.state import GUARD_NGRAM, GUARD_WINDOW, REPORT_COLUMNS, AnswerState
from service.engine.kernels.triton.launch import (
    NUM_TICKETS,
    early,
    is_last,
    launch,
    launch_options,
    let_next_start,
    tickets,
    wait_for_inputs,
)
from service.engine.repetition import LoopRule
from service.engine.runner import TokenStatus

_PROGRAMS_WANTED = 528
"""Rows times shares; 4 for each multiprocessor of an H100."""
_MAX_SHARES = 128
_BLOCK = 1024
_FEW_ROWS, _FEW_WARPS, _MANY_WARPS = 16, 4, 8
"""1, 16, 64 and 256 rows 5.3, 7.9, 16.6 and 50.5 us (264 to 1056 programs, blocks of 512 to 2048, 4 and 8 warps: 5.2 at
best, 8.1, 17.5 and 53.3). H200, 558e320."""

_NGRAM: tl.constexpr = tl.constexpr(GUARD_NGRAM)
_WINDOW: tl.constexpr = tl.constexpr(GUARD_WINDOW)
_COLUMNS: tl.constexpr = tl.constexpr(REPORT_COLUMNS)
_RUN: tl.constexpr = tl.constexpr(int(TokenStatus.RUN))
_STOP: tl.constexpr = tl.constexpr(int(TokenStatus.STOP))
_LENGTH: tl.constexpr = tl.constexpr(int(TokenStatus.LENGTH))
_LOOP: tl.constexpr = tl.constexpr(int(TokenStatus.LOOP))
_FAULT: tl.constexpr = tl.constexpr(int(TokenStatus.FAULT))
_IDLE: tl.constexpr = tl.constexpr(int(TokenStatus.IDLE))
_NO_TOKEN: tl.constexpr = tl.constexpr(2**31 - 1)


@triton.jit
def _followers(history: tl.tensor, count: tl.tensor, restart: tl.tensor) -> tl.tensor:
    """Tokens that may not come next, -1 between them; see `choice._banned`."""
    first = tl.maximum(restart - _WINDOW, 0)
    last = count - 1 - tl.arange(0, _WINDOW)
    matches = (last >= first + _NGRAM - 1) & (count - first >= _NGRAM - 1)
    for back in tl.static_range(1, _NGRAM):
        seen = tl.load(history + last - back, matches, other=-1)
        wanted = tl.load(history + count - back, count - back >= 0, other=-2)
        matches = matches & (seen == wanted)
    return tl.where(matches, tl.load(history + last, matches, other=-1), -1)


@triton.jit
def _gumbel(seed: tl.tensor, token: tl.tensor, count: tl.tensor) -> tl.tensor:
    """Standard Gumbel noise, as `choice._gumbel` has it."""
    zero = tl.zeros_like(token)
    bits, _, _, _ = tl.philox(seed, token, zero + count, zero, zero)
    uniform = ((bits >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    return -tl.log(-tl.log(uniform))


@triton.jit
def _advance(
    token: tl.tensor,
    log_probability: tl.tensor,
    slot: tl.tensor,
    report: tl.tensor,
    tokens: tl.tensor,
    positions: tl.tensor,
    counts: tl.tensor,
    limits: tl.tensor,
    history: tl.tensor,
    dones: tl.tensor,
    runs: tl.tensor,
    restarts: tl.tensor,
    forbiddens: tl.tensor,
    eos: tl.tensor,
    MAX_PERIOD: tl.constexpr,
    PERIODS_POWER: tl.constexpr,
    MIN_TOKENS: tl.constexpr,
    MIN_REPEATS: tl.constexpr,
) -> None:
    """Move an answer on by its chosen token; `history` is the slot's row."""
    count = tl.load(counts + slot)
    period = tl.arange(0, PERIODS_POWER) + 1
    inside = period <= MAX_PERIOD
    run = tl.load(runs + slot * MAX_PERIOD + period - 1, inside, other=0)
    # Neither infinite nor NaN: comparing NaN is false.
    fault = ~(tl.abs(log_probability) < float("inf"))
    stop = (token == eos) & (fault == 0)
    grows = (fault == 0) & (stop == 0)
    code = tl.where(fault, _FAULT, tl.where(stop, _STOP, _RUN))
    aux = tl.max(run)
    if grows:
        past = count - period
        known = inside & (past >= tl.load(restarts + slot)) & (past >= 0)
        tail = tl.load(history + past, known, other=-1)
        run = tl.where(known & (tail == token), run + 1, 0)
        needed = tl.maximum(MIN_REPEATS * period, MIN_TOKENS) - period
        certain = tl.max(tl.where(inside & (run >= needed), run, 0))
        count += 1
        code = tl.where(certain > 0, _LOOP, tl.where(count >= tl.load(limits + slot), _LENGTH, _RUN))
        aux = tl.where(certain > 0, count - certain, tl.max(run))
        tl.store(history + count - 1, token)
        tl.store(counts + slot, count)
        tl.store(runs + slot * MAX_PERIOD + period - 1, run, inside)
        tl.store(forbiddens + slot, -1)
    if code == _RUN:
        tl.store(tokens + slot, token.to(tl.int64))
        tl.store(positions + slot, tl.load(positions + slot) + 1)
    else:
        tl.store(dones + slot, 1)
    tl.store(report, token)
    tl.store(report + 1, log_probability.to(tl.int32, bitcast=True))
    tl.store(report + 2, code)
    tl.store(report + 3, aux)


@triton.jit(do_not_specialize=["eos"])
def _choose(  # noqa: PLR0915 -- what a helper would take and return is most of it
    logits: tl.tensor,
    slots: tl.tensor,
    report: tl.tensor,
    part_numbers: tl.tensor,
    part_tokens: tl.tensor,
    ticket: tl.tensor,
    tokens: tl.tensor,
    positions: tl.tensor,
    counts: tl.tensor,
    limits: tl.tensor,
    history: tl.tensor,
    dones: tl.tensor,
    runs: tl.tensor,
    guards: tl.tensor,
    restarts: tl.tensor,
    forbiddens: tl.tensor,
    temperatures: tl.tensor,
    seeds: tl.tensor,
    eos: tl.tensor,
    vocabulary: tl.tensor,
    row_stride: tl.tensor,
    history_stride: tl.tensor,
    SHARES: tl.constexpr,
    BLOCK: tl.constexpr,
    MAX_PERIOD: tl.constexpr,
    PERIODS_POWER: tl.constexpr,
    MIN_TOKENS: tl.constexpr,
    MIN_REPEATS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Grid `[shares, rows]`; a part is greatest logit, sum of exponentials, best score and its logit."""
    share = tl.program_id(0)
    row = tl.program_id(1)
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    slot = tl.load(slots + row)
    report += row * _COLUMNS
    history += slot * history_stride
    if tl.load(dones + slot) != 0:
        if share == 0:
            column = tl.arange(0, _COLUMNS)
            tl.store(report + column, tl.where(column == 2, _IDLE, 0))
        return
    count = tl.load(counts + slot)
    temperature = tl.load(temperatures + slot)
    guarded = tl.load(guards + slot) != 0
    seed = tl.load(seeds + slot)
    followers = tl.full([_WINDOW], -1, tl.int32)
    forbidden = -1
    if guarded:
        forbidden = tl.load(forbiddens + slot)
        followers = _followers(history, count, tl.load(restarts + slot))

    blocks = tl.cdiv(vocabulary, BLOCK)
    start = (share * blocks // SHARES) * BLOCK
    end = tl.minimum(((share + 1) * blocks // SHARES) * BLOCK, vocabulary)
    lane = tl.arange(0, BLOCK)
    # Finite, so that -inf logits get weight 0 instead of NaN.
    most = tl.full([BLOCK], -1e30, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    best = tl.full([BLOCK], -float("inf"), tl.float32)
    best_logit = tl.full([BLOCK], -float("inf"), tl.float32)
    best_token = tl.full([BLOCK], _NO_TOKEN, tl.int32)
    logits += row.to(tl.int64) * row_stride
    for first in range(start, end, BLOCK):
        token = first + lane
        logit = tl.load(logits + token, token < end, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(most, logit)
        total = total * tl.exp(most - larger) + tl.exp(logit - larger)
        most = larger
        score = logit
        if guarded:
            score = tl.where(token == forbidden, -float("inf"), score)
            left = followers
            banned = tl.max(left)
            while banned >= 0:
                score = tl.where(token == banned, -float("inf"), score)
                left = tl.where(left == banned, -1, left)
                banned = tl.max(left)
        if temperature > 0:
            score = score / tl.maximum(temperature, 1e-6) + _gumbel(seed, token, count)
        # Strictly greater: on a tie the first wins.
        better = score > best
        best = tl.where(better, score, best)
        best_logit = tl.where(better, logit, best_logit)
        best_token = tl.where(better, token, best_token)
    top = tl.max(most)
    whole = tl.sum(total * tl.exp(most - top))
    score = tl.max(best)
    token = tl.min(tl.where(best == score, best_token, _NO_TOKEN))
    logit = tl.max(tl.where(best_token == token, best_logit, -float("inf")))
    part = row * SHARES + share
    tl.store(part_numbers + part * 4, top)
    tl.store(part_numbers + part * 4 + 1, whole)
    tl.store(part_numbers + part * 4 + 2, score)
    tl.store(part_numbers + part * 4 + 3, logit)
    tl.store(part_tokens + part, token)
    if is_last(ticket + row, SHARES):
        parts = row * SHARES + tl.arange(0, SHARES)
        tops = tl.load(part_numbers + parts * 4, cache_modifier=".cg")
        wholes = tl.load(part_numbers + parts * 4 + 1, cache_modifier=".cg")
        scores = tl.load(part_numbers + parts * 4 + 2, cache_modifier=".cg")
        part_logits = tl.load(part_numbers + parts * 4 + 3, cache_modifier=".cg")
        chosen_tokens = tl.load(part_tokens + parts, cache_modifier=".cg")
        top = tl.max(tops)
        normaliser = top + tl.log(tl.sum(wholes * tl.exp(tops - top)))
        score = tl.max(scores)
        token = tl.min(tl.where(scores == score, chosen_tokens, _NO_TOKEN))
        logit = tl.max(tl.where(chosen_tokens == token, part_logits, -float("inf")))
        _advance(
            token, logit - normaliser, slot, report, tokens, positions, counts, limits, history, dones, runs,
            restarts, forbiddens, eos, MAX_PERIOD, PERIODS_POWER, MIN_TOKENS, MIN_REPEATS,
        )  # fmt: skip


def choose(logits_BV: Tensor, slots_B: Tensor, state: AnswerState, rule: LoopRule) -> Tensor:
    """See `choice.choose`."""
    rows, vocabulary = logits_BV.shape
    device = logits_BV.device
    assert logits_BV.stride(1) == 1
    assert rows <= NUM_TICKETS
    report_B4 = torch.empty(rows, REPORT_COLUMNS, dtype=torch.int32, device=device)
    if rows == 0:
        return report_B4
    blocks = triton.cdiv(vocabulary, _BLOCK)
    wanted = min(_MAX_SHARES, blocks, max(1, _PROGRAMS_WANTED // rows))
    shares = triton.next_power_of_2(wanted + 1) // 2
    part_numbers = torch.empty(rows * shares * 4, dtype=torch.float32, device=device)
    part_tokens = torch.empty(rows * shares, dtype=torch.int32, device=device)
    is_early = early(device, rows)
    num_warps = _FEW_WARPS if rows <= _FEW_ROWS else _MANY_WARPS
    launch(
        _choose, (shares, rows),
        logits_BV, slots_B, report_B4, part_numbers, part_tokens, tickets(device),
        state.token_S, state.position_S, state.count_S, state.limit_S, state.history_SL, state.done_S, state.runs_SP,
        state.guard_S, state.restart_S, state.forbidden_S, state.temperature_S, state.seed_S,
        state.eos_id, vocabulary, logits_BV.stride(0), state.history_SL.stride(0),
        SHARES=shares, BLOCK=_BLOCK, MAX_PERIOD=rule.max_period,
        PERIODS_POWER=triton.next_power_of_2(rule.max_period), MIN_TOKENS=rule.min_tokens,
        MIN_REPEATS=rule.min_repeats, EARLY=is_early, **launch_options(num_warps, 1, is_early),
    )  # fmt: skip
    return report_B4
