"""Models, banks and the two ways through the decoder that tests of adapters compare: logits of each."""

from unittest import mock

import torch

from service.engine.cpu.runner import CpuRunner, Prompt
from service.engine.gpu.decoder import GpuDecoder
from service.engine.gpu.paged_cache import PagedCache
from service.engine.gpu.prompts import PromptBatch, lay_out
from service.engine.gpu.state import AnswerState
from service.engine.kernels.reference import decoder as reference
from service.engine.lora.bank import AdapterBank
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from tests.unit.service.engine.tiny import tiny_config, tiny_model

MODEL = tiny_model()
RULE = LoopRule()


def two_shared_model():
    """Shared experts as wide as two routed ones, as the public model has."""
    config = tiny_config()
    config.text_config.n_shared_experts = 2
    torch.manual_seed(3)
    model = DeepseekOcrForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return model


MODELS = {"tiny": MODEL, "two shared": two_shared_model()}


def bank_of(model=MODEL, **changes):
    values = {"num_slots": 3, "max_rank": 8, "device": "cpu", "dtype": torch.float32, **changes}
    return AdapterBank(model.config.text_config, **values)


def prompts_of(count, length=9):
    torch.manual_seed(1)
    return [torch.randint(20, 200, (length,)).tolist() for _ in range(count)]


def plain_logits(model, prompts, tokens, bank=None, adapters=()):
    """Logits of prompts' ends and of one more token, through `CpuRunner`."""
    found = []
    runner = CpuRunner(model, max_rows=len(prompts), max_tokens=64, eos_id=1, rule=LoopRule(), bank=bank)
    choose = runner._choose

    def note(logits, *more):
        found.append(logits.clone())
        return choose(logits, *more)

    none = torch.zeros(0, model.config.text_config.hidden_size)
    adapters = adapters or [-1] * len(prompts)
    with mock.patch.object(runner, "_choose", note):
        runner.prefill([Prompt(ids, none, adapter=adapter) for ids, adapter in zip(prompts, adapters, strict=True)])
        runner.decode(tokens, {}, adapters)
    return found


def paged_logits(model, prompts, tokens, bank=None, adapters=()):
    """The same through `GpuDecoder`."""
    text = model.config.text_config
    decoder = GpuDecoder(model, reference, max_positions=64, takes_adapters=bank is not None)
    count = len(prompts)
    cache = PagedCache(
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        head_dim=text.head_dim,
        num_slots=count,
        num_blocks=count * 4,
        max_tokens=64,
        block_tokens=16,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    state = AnswerState.create(count, 32, RULE, 1, "cpu")
    slots = list(range(count))
    lengths = [len(ids) for ids in prompts]
    cache.open(slots, [64] * count)
    cells = [cache.cells(slot, length) for slot, length in zip(slots, lengths, strict=True)]
    numbers = torch.from_numpy(lay_out(prompts, cells, 3, adapters=adapters or None))
    none = torch.zeros(1, text.hidden_size)
    batch = PromptBatch.unpack(numbers, sum(lengths), count, none, max(lengths), has_adapters=bool(adapters))
    with torch.inference_mode():
        has_experts = bank is not None and not bank.expert_slots.isdisjoint(adapters)
        first = decoder.prefill(batch, cache, bank, has_experts=has_experts)
        state.open(slots, [length + 1 for length in lengths], [32] * count, adapters=adapters or None)
        state.token_S[:count] = torch.tensor(tokens)
        return [first, decoder.decode(torch.arange(count), state, cache, bank, has_experts=has_experts)]
