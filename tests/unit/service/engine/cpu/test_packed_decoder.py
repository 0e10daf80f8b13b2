import pytest
import torch

from service.engine.cpu.kv_cache import SlotCache
from service.engine.cpu.packed_decoder import PackedDecoder, can_pack
from service.engine.cpu.runner import CpuRunner, Prompt
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from tests.unit.service.engine.tiny import tiny_config, tiny_model


def cache_of(model, lengths):
    text = model.config.text_config
    cache = SlotCache(
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        head_dim=text.head_dim,
        max_rows=len(lengths),
        max_tokens=64,
    )
    for length in lengths:
        embeds = torch.randn(1, length, text.hidden_size)
        model.model.decode(embeds, torch.arange(length)[None], None, cache.open_rows(1, length))
    return cache


def randomised(model):
    """Norms that are not all ones, so that folding them in is seen."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("lengths", [[5], [5, 5], [3, 17, 9, 1, 12]])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_topk_prob": True, "routed_scaling_factor": 2.5},
        {"num_experts_per_tok": 1, "n_shared_experts": 0},
        {"first_k_dense_replace": 3},
    ],
)
@torch.inference_mode()
def test_logits_equal_the_models(lengths, changes):
    torch.manual_seed(1)
    config = tiny_config()
    for name, value in changes.items():
        setattr(config.text_config, name, value)
    model = randomised(DeepseekOcrForConditionalGeneration(config).eval())
    tokens = torch.randint(0, 200, (len(lengths),))

    torch.manual_seed(2)
    window = cache_of(model, lengths).open_step()
    embeds = model.model.embed_tokens(tokens[:, None])
    hidden, _ = model.model.decode(embeds, window.position_ids_B1, window.mask_B11S, window)
    expected = model.lm_head(hidden[:, -1])

    torch.manual_seed(2)
    window = cache_of(model, lengths).open_step()
    found = PackedDecoder(model, max_tokens=64).logits(tokens.tolist(), window)

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_model_of_another_type_or_many_experts_is_left_to_itself():
    config = tiny_config()
    config.text_config.n_routed_experts = 65
    assert not can_pack(DeepseekOcrForConditionalGeneration(config))
    assert not can_pack(tiny_model().bfloat16())
    assert can_pack(tiny_model())


def test_a_model_that_does_not_suit_chooses_the_same_tokens(monkeypatch):
    """The way of devices other than the CPU, tried where there is none."""
    model = tiny_model()
    prompt, other = Prompt([0, 3, 21, 22], torch.ones(1, 32)), Prompt([0, 3], torch.ones(1, 32))
    texts = []
    for suits in (True, False):
        monkeypatch.setattr("service.engine.cpu.runner.can_pack", lambda _, suits=suits: suits)
        runner = CpuRunner(model, max_rows=3, max_tokens=64, eos_id=1, rule=LoopRule())
        tokens = [[choice.token] for choice in runner.prefill([prompt, other, prompt])]
        for _ in range(20):
            for row, choice in enumerate(runner.decode([row[-1] for row in tokens], {})):
                tokens[row].append(choice.token)
        texts.append(tokens)
    assert texts[0] == texts[1]
    assert texts[0][0] == texts[0][2] != texts[0][1]
