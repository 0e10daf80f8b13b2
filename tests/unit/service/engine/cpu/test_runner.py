import numpy as np
import pytest
import torch

from service.engine.cpu.runner import CpuRunner, Prompt
from shared.contract.repetition import LoopRule
from tests.unit.service.engine.tiny import tiny_model

MODEL = tiny_model()
HIDDEN = MODEL.config.text_config.hidden_size


def runner_of() -> CpuRunner:
    return CpuRunner(MODEL, max_rows=4, max_tokens=64, eos_id=1, rule=LoopRule())


def prompt_of(*text: int) -> Prompt:
    return Prompt([0, *text], torch.zeros(0, HIDDEN))


def logits_after(*ids: int) -> torch.Tensor:
    with torch.inference_mode():
        return MODEL(torch.tensor([[0, *ids]])).logits[0, -1]


def test_views_are_encoded_by_size_and_come_back_in_order(monkeypatch):
    noise = np.random.default_rng(0)
    views = [noise.integers(0, 256, (px, px, 3), np.uint8) for px in (64, 32, 64, 32)]
    encode, batches = MODEL.encode_views, []

    def counted(views_VHWC):
        batches.append(tuple(views_VHWC.shape[:2]))
        return encode(views_VHWC)

    monkeypatch.setattr(MODEL, "encode_views", counted)
    tokens = runner_of().encode(views)
    assert batches == [(2, 64), (2, 32)]
    for view, found in zip(views, tokens, strict=True):
        with torch.inference_mode():
            torch.testing.assert_close(found, encode(torch.from_numpy(view)[None])[0], rtol=1e-4, atol=1e-5)


def test_prompts_of_equal_length_are_one_batch_and_rows_keep_their_order():
    prompts = [prompt_of(20, 21), prompt_of(22, 23), prompt_of(24), prompt_of(25, 26)]
    choices = runner_of().prefill(prompts)
    for prompt, choice in zip(prompts, choices, strict=True):
        expected = logits_after(*prompt.ids[1:]).log_softmax(-1).max(-1)
        assert choice.token == expected.indices
        assert choice.log_probability == pytest.approx(expected.values.item(), rel=1e-4)


def test_a_banned_token_is_not_chosen_and_its_substitute_keeps_its_own_probability():
    runner = runner_of()
    first = [choice.token for choice in runner.prefill([prompt_of(20), prompt_of(21)])]
    expected = [logits_after(text, token).log_softmax(-1).topk(2) for text, token in zip((20, 21), first, strict=True)]
    free, bound = runner.decode(first, {1: [int(expected[1].indices[0])]})
    assert (free.token, bound.token) == (expected[0].indices[0], expected[1].indices[1])
    assert bound.log_probability == pytest.approx(expected[1].values[1].item(), rel=1e-3)


def test_a_cpu_reports_no_device_memory():
    assert runner_of().device_memory_bytes() == 0
