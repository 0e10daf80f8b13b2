"""Triton kernels against plain torch: random inputs, poisoned outputs, small and odd shapes."""

import pytest
import torch

from service.engine.answer_ring import AnswerRing
from service.engine.gpu.state import AnswerState
from service.engine.kernels.reference import decoder as reference
from shared.contract.repetition import LoopRule
from tests.support.kernels import BF16, DEVICE, F32, GPU_MARK, HAS_GPU, assert_near, noise

pytestmark = [*GPU_MARK, pytest.mark.usefixtures("poisoned")]
DTYPES = [F32, BF16]
# Public dimensions on a GPU; in the interpreter as odd, and smaller.
HIDDEN, HEADS, HEAD_WIDTH, INNER, EXPERTS = (1280, 10, 128, 896, 66) if HAS_GPU else (40, 3, 16, 24, 6)
TOKENS = [1, 2, 3, 16, 17, 70, 256, 1100, 4100] if HAS_GPU else [1, 2, 3, 5, 17]
EPS = 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_norms(fused, tokens, dtype):
    x, residual, weight = noise(tokens, HIDDEN, dtype=dtype), noise(tokens, HIDDEN, dtype=dtype), noise(HIDDEN)
    weight = weight.to(dtype)
    assert_near(fused.rms_norm(x, weight, EPS), reference.rms_norm(x, weight, EPS))
    other = residual.clone()
    assert_near(fused.add_rms_norm(x, residual, weight, EPS), reference.add_rms_norm(x, other, weight, EPS))
    assert torch.equal(residual, other)


def test_a_kernel_is_started_again_for_what_it_was_compiled_for_alone(fused):
    """Wherever a tensor lies and whatever its type, also the second time, when nothing is compiled."""
    for dtype in (F32, BF16, F32, BF16):
        whole, weight = noise(4 * HIDDEN + 1, dtype=dtype), noise(HIDDEN, dtype=dtype)
        for first in (0, 1, 0, 1):
            x = whole[first : first + 4 * HIDDEN].view(4, HIDDEN)
            assert_near(fused.rms_norm(x, weight, EPS), reference.rms_norm(x, weight, EPS))
            assert_near(fused.linear(x, weight.expand(3, -1).contiguous()), (x @ weight)[:, None].expand(-1, 3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [HIDDEN, 3 * HIDDEN + 8])
@pytest.mark.parametrize("tokens", TOKENS[:5])
def test_linear(fused, tokens, width, dtype):
    x, weight = noise(tokens, HIDDEN, dtype=dtype), noise(width, HIDDEN, dtype=dtype, scale=0.05)
    norm, residual = noise(HIDDEN, dtype=dtype), noise(tokens, width, dtype=dtype)
    assert_near(fused.linear(x, weight), reference.linear(x, weight))
    assert_near(fused.norm_linear(x, norm, EPS, weight), reference.norm_linear(x, norm, EPS, weight))
    other = residual.clone()
    fused.linear_add(x, weight, residual)
    reference.linear_add(x, weight, other)
    assert_near(residual, other)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("tokens", TOKENS)
def test_route(fused, tokens, normalise):
    experts, chosen = EXPERTS - 2, 6 if HAS_GPU else 3
    x, gate, norm = noise(tokens, HIDDEN, dtype=BF16), noise(experts, HIDDEN, scale=0.05), noise(HIDDEN, dtype=BF16)
    weights, indices = fused.route(x, gate, chosen, normalise, 1.5, 2)
    expected_weights, expected = reference.route(x, gate, chosen, normalise, 1.5, 2)
    # Two logits may lie closer than rounding.
    same = (indices == expected).all(dim=1)
    assert float(same.double().mean()) > 0.999
    assert indices.dtype == expected.dtype
    assert_near(weights[same], expected_weights[same])
    # A norm rounded to the neighbouring number moves logits by more.
    normed, weights, indices = fused.norm_route(x, norm, EPS, gate, chosen, normalise, 1.5, 2)
    expected_normed, expected_weights, expected = reference.norm_route(x, norm, EPS, gate, chosen, normalise, 1.5, 2)
    assert_near(normed, expected_normed)
    assert float((indices == expected).double().mean()) > 0.99
    assert float((weights - expected_weights).norm() / expected_weights.norm()) < 1e-2


@pytest.mark.parametrize("shares", [1, 4, 16])
@pytest.mark.parametrize("tokens", [1, 17, 70])
def test_route_of_many_tokens(fused, tokens, shares, monkeypatch):
    """However few they are, and into however many shares the width is cut, some of them empty."""
    from service.engine.kernels.triton import routing

    monkeypatch.setattr(routing, "MAX_SHARED_TOKENS", 0)
    monkeypatch.setattr(routing, "_MAX_SHARES", shares)
    x, gate = noise(tokens, HIDDEN, dtype=BF16), noise(EXPERTS - 2, HIDDEN, scale=0.05)
    for _ in range(2):  # the second finds the tickets as the first left them
        weights, indices = fused.route(x, gate, 3, True, 1.5, 2)
        expected_weights, expected = reference.route(x, gate, 3, True, 1.5, 2)
        assert float((indices == expected).double().mean()) > 0.999
        assert_near(weights, expected_weights)


def test_route_prefers_the_lower_index_of_equals(fused):
    for tokens in (2, 20):
        gate = noise(4, HIDDEN).repeat(2, 1)
        x = noise(tokens, HIDDEN, dtype=BF16)
        _, indices = fused.route(x, gate, 4, False, 1.0)
        _, expected = reference.route(x, gate, 4, False, 1.0)
        assert torch.equal(indices, expected)
        assert bool((indices[:, 0] + 4 == indices[:, 1]).all())


def choices(tokens: int, chosen: int, shared: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and experts as `route` gives them, one expert far more popular than the others."""
    popularity = torch.ones(EXPERTS - shared)
    popularity[2] = 30.0
    experts = torch.multinomial(popularity.expand(tokens, -1), chosen)
    extra = torch.arange(EXPERTS - shared, EXPERTS).expand(tokens, -1)
    experts = torch.cat((experts, extra), dim=1).int().to(DEVICE)
    return torch.rand(experts.shape, device=DEVICE) + 0.1, experts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_mixture(fused, tokens, dtype):
    weights, experts = choices(tokens, 6 if HAS_GPU else 3, 2)
    x, residual = noise(tokens, HIDDEN, dtype=dtype), noise(tokens, HIDDEN, dtype=dtype)
    gate_up = noise(EXPERTS, 2 * INNER, HIDDEN, dtype=dtype, scale=HIDDEN**-0.5)
    down = noise(EXPERTS, HIDDEN, INNER, dtype=dtype, scale=INNER**-0.5)
    expected = reference.mixture(x, weights, experts, gate_up, down)
    assert_near(fused.mixture(x, weights, experts, gate_up, down), expected)
    other = residual.clone()
    fused.mixture_add(x, weights, experts, gate_up, down, residual)
    reference.mixture_add(x, weights, experts, gate_up, down, other)
    assert_near(residual, other)


@pytest.mark.parametrize("tokens", [1, 4, 40] if HAS_GPU else [1, 4])
def test_both_ways_through_the_experts_agree(fused, tokens):
    from service.engine.kernels.triton import expert_pairs, expert_tiles

    weights, experts = choices(tokens, 3, 2)
    x, out = noise(tokens, HIDDEN, dtype=BF16), noise(tokens, HIDDEN, dtype=BF16)
    gate_up = noise(EXPERTS, 2 * INNER, HIDDEN, dtype=BF16, scale=HIDDEN**-0.5)
    down = noise(EXPERTS, HIDDEN, INNER, dtype=BF16, scale=INNER**-0.5)
    arguments = (x, weights, experts, gate_up, down)
    expected = reference.mixture(*arguments)
    expert_pairs.mix_pairs(*arguments, None, out, expert_pairs.PairConfig())
    assert_near(out, expected)
    for sizes in ((16, 32, 32, 64, 4, 2), (32, 64, 64, 64, 4, 2)):
        config = expert_tiles.TileConfig(*sizes)
        expert_tiles.mix_tiles(*arguments, None, out.fill_(7.0), config)
        assert_near(out, expected)


def test_a_dense_mlp_is_a_mixture_of_one(fused):
    inner = 6848 if HAS_GPU else 72
    for tokens in (1, 5):
        x = noise(tokens, HIDDEN, dtype=BF16)
        gate_up = noise(1, 2 * inner, HIDDEN, dtype=BF16, scale=HIDDEN**-0.5)
        down = noise(1, HIDDEN, inner, dtype=BF16, scale=inner**-0.5)
        ones, zeros = torch.ones(tokens, 1, device=DEVICE), torch.zeros(tokens, 1, dtype=torch.int32, device=DEVICE)
        expected = reference.mixture(x, ones, zeros, gate_up, down)
        assert_near(fused.mixture(x, ones, zeros, gate_up, down), expected)


def cache(blocks: int, block: int, dtype: torch.dtype) -> torch.Tensor:
    return noise(blocks, HEADS, block, HEAD_WIDTH, dtype=dtype)


def rotary(positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.arange(positions)[:, None] * 10000.0 ** -(torch.arange(0, HEAD_WIDTH, 2) / HEAD_WIDTH)
    angles = torch.cat((angles, angles), dim=-1).to(DEVICE)
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 6])
def test_rotate_and_store(fused, tokens, dtype):
    cos, sin = rotary(50)
    qkv = noise(tokens, 3, HEADS, HEAD_WIDTH, dtype=dtype)
    positions = torch.randint(0, 50, (tokens,), device=DEVICE)
    cells = torch.randperm(4 * 8, device=DEVICE)[:tokens]
    cells[tokens // 2 :][1:2] = -1
    keys, values = cache(4, 8, dtype), cache(4, 8, dtype)
    others = qkv.clone(), keys.clone(), values.clone()
    fused.rotate_and_store(qkv, cos, sin, positions, cells, keys, values)
    reference.rotate_and_store(others[0], cos, sin, positions, cells, *others[1:])
    for out, ref in zip((qkv, keys, values), others, strict=True):
        assert_near(out, ref)


def paged_rows(lengths: list[int], block: int, dtype: torch.dtype):
    """A cache whose cells past each row's length are no numbers, and tables of shuffled blocks."""
    blocks_of_row = [-(-length // block) for length in lengths]
    width = max(blocks_of_row) + 1
    keys, values = (torch.full((sum(blocks_of_row) + 1, HEADS, block, HEAD_WIDTH), float("nan")) for _ in range(2))
    order = torch.randperm(sum(blocks_of_row)).tolist()
    tables = torch.full((len(lengths), width), -5, dtype=torch.int32)
    for row, length in enumerate(lengths):
        for index in range(blocks_of_row[row]):
            tables[row, index] = order.pop()
            filled = min(block, length - index * block)
            for tensor in (keys, values):
                tensor[tables[row, index], :, :filled] = torch.randn(HEADS, filled, HEAD_WIDTH)
    lengths_B = torch.tensor(lengths, dtype=torch.int32)
    return tuple(t.to(DEVICE) for t in (keys.to(dtype), values.to(dtype), tables, lengths_B))


LENGTHS = [[1], [37], [5, 0, 70, 16, 33], [900, 3, 276]] if HAS_GPU else [[1], [37], [5, 0, 40, 16]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("shares", [None, 1, 3])
def test_paged_attention(fused, lengths, shares, dtype):
    from service.engine.kernels.triton.attention import AttentionConfig, attend

    keys, values, tables, lengths_B = paged_rows(lengths, 16, dtype)
    qkv = noise(len(lengths), 3, HEADS, HEAD_WIDTH, dtype=dtype)
    expected = reference.paged_attention(qkv[:, 0], keys, values, tables, lengths_B, 0.2)
    out = attend(
        qkv[:, 0],
        None,
        None,
        None,
        None,
        keys,
        values,
        tables,
        lengths_B,
        0.2,
        AttentionConfig(16, 4, 1),
        shares=shares,
    )
    assert_near(out, expected)
    assert_near(fused.paged_attention(qkv[:, 0], keys, values, tables, lengths_B, 0.2), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("shares", [None, 1, 3])
def test_decode_attention(fused, lengths, shares, dtype):
    from service.engine.kernels.triton.attention import AttentionConfig, attend

    keys, values, tables, lengths_B = paged_rows(lengths, 16, dtype)
    qkv = noise(len(lengths), 3, HEADS, HEAD_WIDTH, dtype=dtype)
    cos, sin = rotary(1000)
    last = (lengths_B - 1).clamp(min=0).long()
    cells = tables.gather(1, (last // 16)[:, None])[:, 0].long() * 16 + last % 16
    cells[lengths_B == 0] = -1
    others = keys.clone(), values.clone()
    expected = reference.decode_attention(qkv.clone(), cos, sin, last.int(), cells, *others, tables, lengths_B, 0.2)
    out = attend(
        qkv.clone(),
        cos,
        sin,
        last.int(),
        cells,
        keys,
        values,
        tables,
        lengths_B,
        0.2,
        AttentionConfig(16, 4, 1),
        shares,
    )
    assert_near(out, expected)
    for cache_, other in zip((keys, values), others, strict=True):
        assert_near(cache_.nan_to_num(), other.nan_to_num())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shares", [None, 1, 3])
def test_decode_attention_over_a_ring(fused, shares, dtype):
    """Rows whose answers have not begun, fill the window, the ring, and have gone round it; and one that is done."""
    from service.engine.kernels.triton.attention import AttentionConfig, attend

    ring = AnswerRing(cells=40, window=12)
    prompts, answers = [5, 20, 33, 18, 7, 9], [1, 12, 13, 40, 175, 3]
    prompts_B = torch.tensor(prompts, dtype=torch.int32, device=DEVICE)
    positions_B = prompts_B + torch.tensor(answers, dtype=torch.int32, device=DEVICE) - 1
    filled = [prompt + min(answer, ring.cells) for prompt, answer in zip(prompts, answers, strict=True)]
    keys, values, tables, _ = paged_rows(filled, 16, dtype)
    seen = [prompt + min(answer, ring.window) for prompt, answer in zip(prompts, answers, strict=True)]
    lengths_B = torch.tensor([*seen[:-1], 0], dtype=torch.int32, device=DEVICE)
    newest = [ring.cell(*each) for each in zip(prompts, positions_B.tolist(), strict=True)]
    cells = torch.stack([tables[row, cell // 16].long() * 16 + cell % 16 for row, cell in enumerate(newest)])
    cells[-1] = -1
    qkv = noise(len(prompts), 3, HEADS, HEAD_WIDTH, dtype=dtype)
    cos, sin = rotary(1000)
    others = keys.clone(), values.clone()
    arguments = (cos, sin, positions_B, cells)
    expected = reference.decode_attention(
        qkv.clone(), *arguments, *others, tables, lengths_B, 0.2, ring=ring, prompts_B=prompts_B
    )
    config = AttentionConfig(16, 4, 1)
    out = attend(qkv.clone(), *arguments, keys, values, tables, lengths_B, 0.2, config, shares, ring, prompts_B)
    assert_near(out, expected)
    for row, (prompt, answer) in enumerate(zip(prompts[:-1], answers[:-1], strict=True)):
        # Spelt out: the prompt's cells, and those of the newest answer tokens, in any order.
        places = [*range(prompt), *(ring.cell(prompt, prompt + i) for i in range(max(0, answer - 12), answer))]
        blocks = tables[row, [place // 16 for place in places]].long()
        offsets = torch.tensor(places, device=DEVICE) % 16
        one_key, one_value = (cache[blocks, :, offsets].float() for cache in others)
        turned = qkv[row : row + 1].clone()
        nowhere = torch.tensor([-1], device=DEVICE)
        reference.rotate_and_store(turned, cos, sin, positions_B[row : row + 1], nowhere, *others)
        weights = (torch.einsum("nd,snd->ns", turned[0, 0].float(), one_key) * 0.2).softmax(dim=-1)
        assert_near(expected[row].float(), torch.einsum("ns,snd->nd", weights, one_value), 1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [[1], [65, 3, 130], [276, 906, 64]] if HAS_GPU else [[1], [33, 3, 70]])
def test_prefill_attention(fused, lengths, dtype):
    tokens = sum(lengths)
    qkv = noise(tokens, 3, HEADS, HEAD_WIDTH, dtype=dtype)
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=DEVICE)
    arguments = (*qkv.unbind(1), starts, max(lengths), 0.2)
    assert_near(fused.prefill_attention(*arguments), reference.prefill_attention(*arguments))


def test_begin_step_with_a_ring(fused):
    ring = AnswerRing(cells=20, window=6)
    state = AnswerState.create(4, 50, LoopRule(), 1, DEVICE)
    state.open([0, 3, 1], [5, 14, 9], [40, 40, 40])
    state.position_S[:4] = torch.tensor([7, 31, 9, 45], dtype=torch.int32)
    state.close(1)
    tables = torch.arange(15, dtype=torch.int32, device=DEVICE).view(5, 3).flip(0).contiguous()
    slots = torch.tensor([3, 0, 1, 4], device=DEVICE)
    arguments = (slots, state, noise(10, HIDDEN, dtype=BF16), tables, 16, ring)
    out, expected = fused.begin_step(*arguments), reference.begin_step(*arguments)
    for ours, theirs in zip(out, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    # 14 prompt tokens, then answer token 31 in cell 11 of the ring; it sees six of the answer.
    assert out[2].tolist() == [20, 8, 0, 0]
    assert out[3].tolist()[:3] == [int(tables[3, 25 // 16]) * 16 + 25 % 16, int(tables[0, 0]) * 16 + 7, -1]


def test_begin_step(fused):
    state = AnswerState.create(4, 50, LoopRule(), 1, DEVICE)
    state.open([0, 3, 1], [5, 14, 9], [20, 20, 20])
    state.token_S[:4] = torch.tensor([7, 8, 9, 3])
    state.position_S[3] = 31
    state.close(1)
    embeddings = noise(10, HIDDEN, dtype=BF16)
    tables = torch.arange(15, dtype=torch.int32, device=DEVICE).view(5, 3).flip(0).contiguous()
    slots = torch.tensor([3, 0, 1, 4, 4], device=DEVICE)
    out = fused.begin_step(slots, state, embeddings, tables, 16)
    expected = reference.begin_step(slots, state, embeddings, tables, 16)
    for ours, theirs in zip(out, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
