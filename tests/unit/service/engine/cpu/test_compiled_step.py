"""Compiled steps against the model in float32 and in float64, and where there are none."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from service.engine.cpu import compiled_decoder, compiled_step, step_library
from service.engine.cpu.compiled_decoder import CompiledDecoder
from service.engine.cpu.compiled_step import can_compile
from service.engine.cpu.kv_cache import SlotCache
from service.engine.cpu.layer_weights import LayerWeights
from service.engine.cpu.loaded_library import NoLibraryError
from service.engine.cpu.rounded_decoder import RoundedDecoder
from service.engine.cpu.step_library import DECODE_STEPS
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.moe import Gate
from shared.deepseek_ocr.quantisation import dequantise_rows, quantise_rows
from tests.unit.service.engine.cpu.runnable_libraries import runnable
from tests.unit.service.engine.cpu.test_packed_decoder import randomised
from tests.unit.service.engine.cpu.test_rounded_decoder import (
    CHANGES,
    LENGTH,
    STEPS,
    cache_of,
    logits_of_model,
    logits_rounded,
)
from tests.unit.service.engine.tiny import tiny_config

CLEAR_MARGIN = 0.02
"""A difference of experts' logarithmic probabilities that rounding does not turn round."""
RUNNABLE = runnable(DECODE_STEPS)
needs_library = pytest.mark.skipif(not RUNNABLE, reason="needs a C compiler and a processor with AVX2")


@pytest.fixture(scope="module", params=RUNNABLE, ids=lambda library: library.name)
def library(request, tmp_path_factory):
    library = replace(request.param, folder=tmp_path_factory.mktemp("library"))
    step_library.build(library)
    return compiled_step.load([library])


@pytest.fixture
def compiled(library, monkeypatch):
    monkeypatch.setattr(compiled_decoder, "load", lambda: library)


def model_of(changes) -> DeepseekOcrForConditionalGeneration:
    """Two heads of 64, as the library takes them."""
    torch.manual_seed(1)
    config = tiny_config()
    for name, value in {"hidden_size": 128, **changes}.items():
        setattr(config.text_config, name, value)
    return randomised(DeepseekOcrForConditionalGeneration(config).eval())


def with_level_head(model):
    """Its language head as int8 rows with scales, and a vocabulary that the library takes."""
    weight = torch.randn(288, model.lm_head.weight.shape[1]) * 0.05
    model.lm_head.weight = torch.nn.Parameter(dequantise_rows(*quantise_rows(weight)))
    model.model.embed_tokens.weight = torch.nn.Parameter(torch.randn(weight.shape))
    return model


@needs_library
@pytest.mark.parametrize("rows", [1, 7, 16])
@pytest.mark.parametrize("changes", CHANGES)
def test_logits_are_the_models_but_for_rounding(rows, changes, compiled):
    model = model_of(changes)
    ids_BL, tokens_SB = torch.randint(20, 200, (rows, LENGTH)), torch.randint(20, 200, (STEPS, rows))
    decoder = CompiledDecoder(model, 64)
    pairs = zip(
        logits_of_model(model, ids_BL, tokens_SB), logits_rounded(model, ids_BL, tokens_SB, decoder), strict=True
    )
    for expected, found in pairs:
        assert (found - expected).norm() / expected.norm() < 0.02


@needs_library
@torch.inference_mode()
def test_long_rows_of_unequal_lengths_are_as_without_the_library(compiled):
    model, found = model_of({}), []
    reader = RoundedDecoder(model, 128)
    for decoder in (CompiledDecoder(model, 128), reader):
        cache = cache_of(model, 3, torch.bfloat16)
        generator = torch.Generator().manual_seed(5)
        for length in (33, 16, 50):
            embeds_BLH = torch.randn(1, length, 128, generator=generator)
            reader.read(embeds_BLH, torch.arange(length)[None], cache.open_rows(1, length))
        found.append([decoder.step([21, 22, 23], cache.open_step()) for _ in range(4)])
    for one, other in zip(*found, strict=True):
        assert not torch.equal(one, other), "both were computed in the same way"
        assert (one - other).norm() / other.norm() < 0.01


def cache_with(model, keys_values: Tensor, dtype: torch.dtype, growth_tokens: int = 1) -> SlotCache:
    """A cache whose rows hold `[2, layers, B, N, S, D]`; without room for more than the next token."""
    _, layers, rows, heads, length, width = keys_values.shape
    cache = SlotCache(
        num_layers=layers,
        num_heads=heads,
        head_dim=width,
        max_rows=rows,
        max_tokens=length + 8,
        growth_tokens=growth_tokens,
        dtype=dtype,
    )
    window = cache.open_rows(rows, length)
    for layer in range(layers):
        window.update(keys_values[0, layer].to(dtype), keys_values[1, layer].to(dtype), layer)
    return cache


def exact_step(model, tokens: list[int], keys_values: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in float64 (norms, routers: float32), and by how much each row's last expert was preferred to the next.

    The latter is the least of all layers, a difference of logarithms; rounding may turn a small one round.
    """
    margins: list[Tensor] = []

    def watch(gate, _inputs, outputs) -> None:
        scores = outputs[2].log().sort(dim=-1, descending=True).values
        margins.append(scores[:, gate.top_k - 1] - scores[:, gate.top_k])

    model = copy.deepcopy(model).double()
    for module in model.model.modules():
        if isinstance(module, Gate):
            module.register_forward_hook(watch)
    step = cache_with(model, keys_values, torch.float64).open_step()
    embeds_B1H = model.model.embed_tokens(torch.tensor(tokens)[:, None])
    hidden, _ = model.model.decode(embeds_B1H, step.position_ids_B1, step.mask_B11S, step)
    margin = torch.stack(margins).amin(dim=0) if margins else torch.full((len(tokens),), torch.inf)
    return model.lm_head(hidden[:, -1]), margin


@needs_library
@pytest.mark.parametrize("changes", CHANGES)
@torch.inference_mode()
def test_steps_are_no_farther_from_float64_than_torchs(changes, compiled):
    model = model_of(changes)
    decoders: list[CompiledDecoder | RoundedDecoder] = [CompiledDecoder(model, 128), RoundedDecoder(model, 128)]
    errors: tuple[list[Tensor], list[Tensor]] = ([], [])
    generator = torch.Generator().manual_seed(3)
    layers = len(model.model.layers)
    for rows in (1, 7, 16, 16, 16):
        keys_values = torch.randn(2, layers, rows, 2, 40, 64, generator=generator).bfloat16()
        tokens = torch.randint(20, 200, (rows,), generator=generator).tolist()
        expected, margin = exact_step(model, tokens, keys_values)
        for found, decoder in zip(errors, decoders, strict=True):
            logits = decoder.step(tokens, cache_with(model, keys_values, torch.bfloat16).open_step())
            error = (logits - expected).norm(dim=1) / expected.norm(dim=1)
            # Where experts are as good as equal, rounding chooses, with torch too.
            found.append(error[margin > CLEAR_MARGIN])
    compiled, plain = (torch.cat(each) for each in errors)
    assert len(compiled) > 40
    assert compiled.max() < 0.02
    assert compiled.median() < 1.25 * plain.median()
    assert compiled.square().mean() < 1.5 * plain.square().mean()


@needs_library
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (9, 15), (16, 16), (5, 31), (3, 127)])
@torch.inference_mode()
def test_a_step_that_fills_the_cache_writes_its_own_cells_alone(rows, length, compiled):
    model = model_of({})
    keys_values = torch.randn(2, len(model.model.layers), rows, 2, length, 64).bfloat16()
    cache = cache_with(model, keys_values, torch.bfloat16)
    window = cache.open_step()
    assert cache.capacity == length + 1
    window.storage[..., -1, :] = float("nan")
    logits = CompiledDecoder(model, 256).step([20 + row for row in range(rows)], window)
    assert logits.isfinite().all()
    assert torch.equal(window.storage[..., :-1, :], keys_values)
    assert window.storage.isfinite().all()


@needs_library
@torch.inference_mode()
def test_rows_that_are_not_fed_stay_as_they_are(compiled):
    model = model_of({})
    cache = cache_of(model, 4, torch.bfloat16)
    RoundedDecoder(model, 64).read(
        torch.randn(3, LENGTH, 128), torch.arange(LENGTH).expand(3, -1), cache.open_rows(3, LENGTH)
    )
    cache.close_row(0)
    window = cache.open_step()
    window.storage[:, :, 2:] = 7
    CompiledDecoder(model, 64).step([21, 22], window)
    assert (window.storage[:, :, 2:] == 7).all()


@needs_library
@pytest.mark.parametrize("broken", ["cells", "counts", "rows", "hidden", "tables", "dtype", "layers"])
@torch.inference_mode()
def test_what_does_not_fit_is_not_handed_to_the_library(broken, compiled):
    model = model_of({})
    step = CompiledDecoder(model, 64)._step
    layers = len(model.model.layers) - (broken == "layers")
    keys_values = torch.randn(2, layers, 2, 2, 5, 64).bfloat16()
    dtype = torch.float32 if broken == "dtype" else torch.bfloat16
    window = cache_with(model, keys_values, dtype).open_step()
    if broken == "cells":
        window.cells[1] = 6
    if broken == "counts":
        # As many tokens as are given, the last of them beyond the cache.
        window.cells[:] = [4, 5]
    x_BH = torch.randn(3 if broken in ("rows", "counts") else 2, 64 if broken == "hidden" else 128)
    table_BD = torch.ones(len(x_BH), 32 if broken == "tables" else 64)
    with pytest.raises(AssertionError):
        step.run(x_BH, table_BD, table_BD, window.storage, window.cells, [1, 2] if broken == "counts" else [1, 1])


@needs_library
@torch.inference_mode()
def test_a_row_is_what_it_is_alone_and_one_that_is_no_number_spoils_no_other(compiled):
    check_spoilt_row(model_of({}))


def check_spoilt_row(model) -> None:
    reader, decoder = RoundedDecoder(model, 64), CompiledDecoder(model, 64)
    prompts_BLH = torch.randn(9, LENGTH, 128)
    positions = torch.arange(LENGTH)

    def step(rows):
        cache = cache_of(model, len(rows), torch.bfloat16)
        for row in rows:
            reader.read(prompts_BLH[row : row + 1].clone(), positions[None], cache.open_rows(1, LENGTH))
        return decoder.step([30 + row for row in rows], cache.open_step())

    together = step(range(9))
    # The language head is torch's, whose sums depend on the number of rows.
    assert torch.allclose(together[4], step([4])[0], rtol=0, atol=1e-5)
    prompts_BLH[2, 3] = float("nan")
    spoilt = step(range(9))
    assert spoilt[2].isnan().all()
    assert torch.equal(spoilt[[0, 1, 3, 4, 5, 6, 7, 8]], together[[0, 1, 3, 4, 5, 6, 7, 8]])


@needs_library
@pytest.mark.parametrize("changes", [{"hidden_size": 32}, {"moe_intermediate_size": 24}, {"answer_window": 8}])
def test_other_shapes_are_not_taken(changes, compiled):
    with pytest.raises(NoLibraryError, match="other shapes"):
        CompiledDecoder(model_of(changes), 64)


@needs_library
def test_another_type_is_not_taken(compiled):
    with pytest.raises(NoLibraryError, match="other shapes"):
        CompiledDecoder(model_of({}).bfloat16(), 64)


@needs_library
@pytest.mark.parametrize("changes", CHANGES)
def test_several_tokens_of_a_row_are_bit_for_bit_what_they_are_one_by_one(changes, compiled):
    check_several_tokens(with_level_head(model_of(changes)))


@torch.inference_mode()
def check_several_tokens(model) -> None:
    counts = [1, 2, 3, 4, 4, 3]
    # Around multiples of 16, which attention takes at once.
    lengths = [30, 13, 14, 15, 29, 1]
    decoder = CompiledDecoder(model, 64)
    ids = [[20 + 4 * row + place for place in range(count)] for row, count in enumerate(counts)]

    def filled() -> SlotCache:
        cache = cache_of(model, 6, torch.bfloat16)
        for row, length in enumerate(lengths):
            window, generator = cache.open_rows(1, length), torch.Generator().manual_seed(row)
            for layer in range(len(model.model.layers)):
                keys, values = torch.randn(2, 1, 2, length, 64, generator=generator).bfloat16()
                window.update(keys, values, layer)
        return cache

    together = filled()
    states_TH, logits_TV = decoder.step_several(ids, together.open_several(counts))
    single = filled()
    found: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for place in range(max(counts)):
        fed = [each[min(place, len(each) - 1)] for each in ids]
        window = single.open_several([1] * 6)
        states_BH, logits_BV = decoder.step_several([[token] for token in fed], window)
        for row, count in enumerate(counts):
            if place < count:
                found[row, place] = states_BH[row], logits_BV[row]
            else:
                single.truncate(row, lengths[row] + count)
    places = [(row, place) for row, count in enumerate(counts) for place in range(count)]
    assert torch.equal(states_TH, torch.stack([found[each][0] for each in places]))
    assert torch.equal(logits_TV, torch.stack([found[each][1] for each in places]))
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        one, other = (cache._storage[:, :, row, :, : length + count] for cache in (together, single))
        assert torch.equal(one, other)


@needs_library
@torch.inference_mode()
def test_the_compiled_language_head_is_the_models(compiled):
    model = with_level_head(model_of({}))
    cache = cache_of(model, 2, torch.bfloat16)
    reader = RoundedDecoder(model, 64)
    reader.read(torch.randn(2, LENGTH, 128), torch.arange(LENGTH).expand(2, -1), cache.open_rows(2, LENGTH))
    states_TH, logits_TV = CompiledDecoder(model, 64).step_several([[21, 22], [23]], cache.open_several([2, 1]))
    torch.testing.assert_close(logits_TV, model.lm_head(states_TH), rtol=1e-5, atol=1e-5)


def layer_of(**changes) -> LayerWeights:
    sizes = {"hidden": 64, "width": 64, "experts": 4, "parts": 4} | changes
    hidden, width = sizes["hidden"], sizes["width"]
    experts = sizes["experts"]
    return LayerWeights(
        qkv=torch.zeros(3 * hidden, hidden),
        out=torch.zeros(hidden, hidden),
        gate_up=torch.zeros(2 * width, hidden),
        down=torch.zeros(hidden, width),
        router=torch.zeros(experts, hidden) if experts else None,
        parts=sizes["parts"],
    )


@pytest.mark.parametrize(
    ("changes", "head_dim", "fits"),
    [
        ({}, 64, True),
        ({}, 32, False),
        ({"hidden": 96}, 64, False),
        ({"width": 80, "parts": 4}, 64, False),
        ({"experts": 17, "parts": 20, "width": 320}, 64, False),
        ({"parts": 33, "width": 33 * 16}, 64, False),
        ({"experts": 5}, 64, False),
        ({"experts": 0}, 64, False),
        ({"experts": 0, "parts": 1}, 64, True),
        ({"hidden": 128}, 64, False),
    ],
)
def test_shapes_that_the_library_takes(changes, head_dim, fits):
    assert can_compile([layer_of(), layer_of(**changes)], head_dim) is fits


@pytest.mark.parametrize("name", ["qkv", "out", "gate_up", "down", "router"])
def test_matrices_that_do_not_belong_together_are_not_taken(name):
    layer = layer_of()
    assert not can_compile([replace(layer, **{name: getattr(layer, name)[:, :-16]})], 64)


@needs_library
def test_a_decoder_says_for_which_processors_its_steps_are(library, compiled):
    name = "AVX2" if library._name.endswith("avx2.so") else "AVX-512"
    assert CompiledDecoder(model_of({}), 64).steps == f"compiled for {name}"


@pytest.fixture(params=[each for each in RUNNABLE if each.name.endswith("vnni")], ids=lambda library: library.name)
def by_bytes(request, tmp_path, monkeypatch):
    library = replace(request.param, folder=tmp_path)
    step_library.build(library)
    monkeypatch.setattr(compiled_decoder, "load", lambda: compiled_step.load([library]))


def with_levels(model):
    """All matrices of its layers, and its language head, as int8 rows with scales."""
    for layer in model.model.layers:
        for name, parameter in layer.named_parameters():
            if parameter.ndim > 1 and not name.endswith("gate.weight"):
                rows_OI = parameter.data.view(-1, parameter.shape[-1])
                parameter.data = dequantise_rows(*quantise_rows(rows_OI)).view_as(parameter)
    return with_level_head(model)


WIDE = {"moe_intermediate_size": 32, "intermediate_size": 64}
"""Parts of a panel of levels, or of two."""


def test_levels_are_multiplied_by_bytes_and_other_weights_are_not(by_bytes):
    model = with_levels(model_of(WIDE))
    assert CompiledDecoder(model, 64).steps.endswith("by bytes")
    model.model.layers[-1].self_attn.o_proj.weight.data[0, 0] *= 1.001
    assert not CompiledDecoder(model, 64).steps.endswith("by bytes")


@pytest.mark.parametrize("rows", [1, 2, 9, 16])
@pytest.mark.parametrize("changes", CHANGES)
def test_logits_by_bytes_are_the_models_but_for_rounding(rows, changes, by_bytes):
    model = with_levels(model_of({**changes, **WIDE}))
    ids_BL, tokens_SB = torch.randint(20, 200, (rows, LENGTH)), torch.randint(20, 200, (STEPS, rows))
    decoder = CompiledDecoder(model, 64)
    assert decoder.steps.endswith("by bytes")
    errors = [
        (found - expected).norm(dim=1) / expected.norm(dim=1)
        for expected, found in zip(
            logits_of_model(model, ids_BL, tokens_SB), logits_rounded(model, ids_BL, tokens_SB, decoder), strict=True
        )
    ]
    # Where experts are as good as equal, rounding chooses.
    assert torch.cat(errors).median() < 0.02


@pytest.mark.parametrize("changes", CHANGES)
def test_several_tokens_by_bytes_are_bit_for_bit_what_they_are_one_by_one(changes, by_bytes):
    check_several_tokens(with_levels(model_of({**changes, **WIDE})))


@torch.inference_mode()
def test_by_bytes_a_row_that_is_no_number_spoils_no_other(by_bytes):
    check_spoilt_row(with_levels(model_of(WIDE)))


@torch.inference_mode()
def test_the_language_head_by_levels_is_the_models_but_for_rounding(by_bytes):
    model = with_levels(model_of(WIDE))
    window = cache_of(model, 2, torch.bfloat16)
    RoundedDecoder(model, 64).read(
        torch.randn(2, LENGTH, 128), torch.arange(LENGTH).expand(2, -1), window.open_rows(2, LENGTH)
    )
    states_TH, logits_TV = CompiledDecoder(model, 64).step_several([[21, 22], [23]], window.open_several([2, 1]))
    expected = model.lm_head(states_TH)
    assert (logits_TV - expected).norm() / expected.norm() < 1e-4
