"""The GPU's runner on a CPU, with plain kernels: everything but the kernels is what runs on a card."""

from service.engine.answer_ring import AnswerRing
from service.engine.config import EngineLimits, WeightForm
from service.engine.engine import TorchEngine
from service.engine.gpu.decoder import GpuDecoder
from service.engine.gpu.paged_cache import PagedCache
from service.engine.gpu.runner import GpuRunner
from service.engine.gpu.state import AnswerState
from service.engine.kernels.reference import decoder as reference
from service.engine.lora.bank import make_bank
from service.engine.protocol import EngineInfo
from service.engine.vision.runner import GpuVision
from tests.unit.service.engine.tiny import GEOMETRY, tiny_model, tiny_tokenizer


def paged_runner(model, limits: EngineLimits, eos_id: int, *, block_tokens: int = 16, kernels=reference) -> GpuRunner:
    text = model.config.text_config
    device, dtype = model.lm_head.weight.device, model.lm_head.weight.dtype
    ring = AnswerRing.of(model, limits.loop_rule)
    kv_tokens = limits.kv_tokens or limits.batch_size * limits.max_sequence_tokens
    cache = PagedCache(
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        head_dim=text.head_dim,
        num_slots=limits.batch_size,
        num_blocks=-(-kv_tokens // block_tokens),
        max_tokens=limits.max_sequence_tokens,
        block_tokens=block_tokens,
        device=device,
        dtype=dtype,
    )
    # What a kernel reads beyond its row's length shows.
    for keys, values in cache.layers:
        keys.fill_(float("nan"))
        values.fill_(float("nan"))
    return GpuRunner(
        model,
        decoder=GpuDecoder(
            model,
            kernels,
            max_positions=limits.max_sequence_tokens,
            takes_adapters=bool(limits.adapter_slots),
            is_int8=limits.weights is WeightForm.INT8,
            ring=ring,
        ),
        vision=GpuVision(model),
        cache=cache,
        state=AnswerState.create(limits.batch_size, limits.max_new_tokens, limits.loop_rule, eos_id, device),
        kernels=kernels,
        rule=limits.loop_rule,
        view_sizes_px=(GEOMETRY.global_px,),
        # The plain kernels wait for the device here and there, which a capture forbids.
        uses_graphs=kernels is not reference,
        ring=ring,
        bank=make_bank(model, limits, splits_shared=True),
    )


def paged_engine(model=None, *, kernels=reference, **limits) -> TorchEngine:
    """Like `tiny.tiny_engine`, with the other runner behind it."""
    model = model or tiny_model()
    values = EngineLimits(**{"batch_size": 4, "max_new_tokens": 64, "max_sequence_tokens": 256, **limits})
    tokenizer = tiny_tokenizer()
    info = EngineInfo(
        model_id="tiny",
        device=str(model.lm_head.weight.device),
        dtype=str(model.lm_head.weight.dtype),
        geometry=GEOMETRY,
        max_new_tokens=values.max_new_tokens,
        max_sequence_tokens=values.max_sequence_tokens,
        batch_size=values.batch_size,
        prepares_views=GpuRunner.prepares_views,
    )
    runner = paged_runner(model, values, tokenizer.eos_id, kernels=kernels)
    return TorchEngine(runner, tokenizer, info, values)
