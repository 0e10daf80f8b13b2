"""Choosing the next token of every row, in plain torch: bans, sampling, the end of an answer, the loop detector.

Defines `choose` on the device's state; the Triton kernel in `kernels/triton/sampler.py` computes the same. Loop
detector and guard are those of `repetition.py`, batched; draws are those of `sampling.py`. Used by the engine's
single thread.

Shape letters: B rows, V vocabulary, L answer tokens at most, P periods, W positions of the guard's window,
S slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from service.engine.gpu.state import GUARD_NGRAM, GUARD_WINDOW, AnswerState
from service.engine.repetition import LoopRule
from service.engine.runner import TokenStatus
from service.engine.sampling import draw_scores


def choose(logits_BV: Tensor, slots_B: Tensor, state: AnswerState, rule: LoopRule) -> Tensor:
    """Choose a token for each row and move its answer on.

    The log probability is the model's own: before bans, and at temperature 1.

    Args:
        logits_BV: Of any float dtype; computed in float32.
        slots_B: int64; several rows may name the scratch slot, no other slot may come twice.
        state: Changed in place for the slots that are not done.
        rule: What counts as a loop.

    Returns:
        `[B, REPORT_COLUMNS]` int32, see `REPORT_COLUMNS`. Tokens to keep are counted from the answer's beginning, also
        in the second attempt.
    """
    wide_BV = logits_BV.float()
    done_B, count_B, runs_BP = state.done_S[slots_B], state.count_S[slots_B], state.runs_SP[slots_B]
    token_B = _score(wide_BV, slots_B, state).argmax(dim=-1)
    log_probability_B = wide_BV.gather(1, token_B[:, None])[:, 0] - wide_BV.logsumexp(dim=-1)

    fault_B = ~log_probability_B.isfinite()
    stop_B = ~fault_B & (token_B == state.eos_id)
    grows_B = ~(fault_B | stop_B)
    new_count_B = count_B + grows_B
    new_runs_BP = torch.where(grows_B[:, None], _push(token_B, slots_B, state, runs_BP), runs_BP)
    loop_run_B = _longest_certain_run(new_runs_BP, rule)
    loop_B = grows_B & (loop_run_B > 0)
    length_B = grows_B & ~loop_B & (new_count_B >= state.limit_S[slots_B])

    code_B = (
        TokenStatus.STOP * stop_B
        + TokenStatus.LENGTH * length_B
        + TokenStatus.LOOP * loop_B
        + TokenStatus.FAULT * fault_B
    )
    code_B = torch.where(done_B, int(TokenStatus.IDLE), code_B)
    aux_B = torch.where(loop_B, new_count_B - loop_run_B, new_runs_BP.amax(dim=-1))

    _store(slots_B, state, token_B, new_count_B, new_runs_BP, grows=grows_B & ~done_B, ends=code_B != TokenStatus.RUN)
    bits_B = log_probability_B.contiguous().view(torch.int32)
    return torch.stack((token_B.int(), bits_B, code_B.int(), aux_B.int()), dim=1)


def _store(
    slots_B: Tensor,
    state: AnswerState,
    token_B: Tensor,
    count_B: Tensor,
    runs_BP: Tensor,
    *,
    grows: Tensor,
    ends: Tensor,
) -> None:
    """Write back; rows that do not change write their old values, so no shape depends on data."""
    last_B = (count_B.long() - 1).clamp(0, state.history_SL.shape[1] - 1)
    state.history_SL[slots_B, last_B] = torch.where(grows, token_B.int(), state.history_SL[slots_B, last_B])
    state.count_S[slots_B] = torch.where(grows, count_B, state.count_S[slots_B])
    state.runs_SP[slots_B] = torch.where(grows[:, None], runs_BP, state.runs_SP[slots_B])
    state.forbidden_S[slots_B] = torch.where(grows, -1, state.forbidden_S[slots_B])
    moves_B = grows & ~ends
    state.token_S[slots_B] = torch.where(moves_B, token_B, state.token_S[slots_B])
    state.position_S[slots_B] = state.position_S[slots_B] + moves_B.int()
    state.done_S[slots_B] = ends


def _push(token_B: Tensor, slots_B: Tensor, state: AnswerState, runs_BP: Tensor) -> Tensor:
    """`repetition.LoopDetector.push`, before the token is part of the history."""
    num_periods = runs_BP.shape[1]
    past_BP = state.count_S[slots_B, None] - torch.arange(1, num_periods + 1, device=runs_BP.device)
    tail_BP = state.history_SL[slots_B[:, None], past_BP.clamp(min=0)]
    equal_BP = (tail_BP == token_B[:, None]) & (past_BP >= state.restart_S[slots_B, None])
    return (runs_BP + 1) * equal_BP


def _longest_certain_run(runs_BP: Tensor, rule: LoopRule) -> Tensor:
    """The longest run that is a loop; 0 where none is."""
    periods_P = torch.arange(1, runs_BP.shape[1] + 1, device=runs_BP.device)
    needed_P = (rule.min_repeats * periods_P).clamp(min=rule.min_tokens) - periods_P
    return (runs_BP * (runs_BP >= needed_P)).amax(dim=-1)


def _score(wide_BV: Tensor, slots_B: Tensor, state: AnswerState) -> Tensor:
    """What the chosen token is greatest in."""
    scores_BV = wide_BV
    guard_B, temperature_B1 = state.guard_S[slots_B], state.temperature_S[slots_B, None]
    if guard_B.any():
        banned_BV = _banned(slots_B, state, wide_BV.shape[1]) & guard_B[:, None]
        scores_BV = scores_BV.masked_fill(banned_BV, float("-inf"))
    if (temperature_B1 > 0).any():
        sampled_BV = draw_scores(scores_BV, temperature_B1, state.seed_S[slots_B, None], state.count_S[slots_B, None])
        scores_BV = torch.where(temperature_B1 > 0, sampled_BV, scores_BV)
    return scores_BV


def _banned(slots_B: Tensor, state: AnswerState, vocabulary: int) -> Tensor:
    """`repetition.RepetitionGuard.banned` as a mask `[B, V]`.

    An n-gram is named by the position of its last token; the guard knows those that lie within the last
    `GUARD_WINDOW` tokens before the second attempt or came since, the newest `GUARD_WINDOW` of them.
    """
    count_B1, restart_B1 = state.count_S[slots_B, None], state.restart_S[slots_B, None]
    history_BL = state.history_SL[slots_B]
    context = GUARD_NGRAM - 1
    first_B1 = (restart_B1 - GUARD_WINDOW).clamp(min=0)
    last_BW = count_B1 - 1 - torch.arange(GUARD_WINDOW, device=slots_B.device)
    matches_BW = (last_BW >= first_B1 + context) & (count_B1 - first_B1 >= context)
    for back in range(1, GUARD_NGRAM):
        seen_BW = history_BL.gather(1, (last_BW - back).clamp(min=0))
        matches_BW &= seen_BW == history_BL.gather(1, (count_B1.long() - back).clamp(min=0))
    # Rows without bans write to one extra column past the vocabulary.
    followers_BW = history_BL.gather(1, last_BW.clamp(min=0)).long().where(matches_BW, vocabulary)
    forbidden_B1 = state.forbidden_S[slots_B, None].long()
    followers_BW = torch.cat((followers_BW, forbidden_B1.where(forbidden_B1 >= 0, vocabulary)), dim=1)
    mask = torch.zeros(len(slots_B), vocabulary + 1, dtype=torch.bool, device=slots_B.device)
    return mask.scatter_(1, followers_BW, value=True)[:, :vocabulary]
