"""Compiled prompts against the model in float32: logits, keys and values."""

from __future__ import annotations

import pytest
import torch

from service.engine.cpu.canvas_prompts import PromptReader
from service.engine.cpu.kv_cache import SlotCache
from service.engine.cpu.loaded_library import NoLibraryError
from tests.unit.service.engine.cpu.compiled_canvases import RUNNABLE, built, canvas_model, rounding_limit
from tests.unit.service.engine.cpu.test_rounded_decoder import CHANGES

pytestmark = pytest.mark.skipif(not RUNNABLE, reason="needs a C compiler and a processor with AVX2")
MAX_TOKENS = 320


@pytest.fixture(scope="module", params=RUNNABLE, ids=lambda each: each.name)
def library(request, tmp_path_factory):
    return built(request.param, tmp_path_factory.mktemp("library"))


def cache_of(model, rows: int) -> SlotCache:
    text = model.config.text_config
    return SlotCache(
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        head_dim=text.head_dim,
        max_rows=rows + 1,
        max_tokens=MAX_TOKENS,
    )


def embedded(model, rows: int, length: int):
    """Tokens, and positions with gaps, as prompts have that leave padding out."""
    generator = torch.Generator().manual_seed(length)
    ids_BL = torch.randint(20, 200, (rows, length), generator=generator)
    positions_BL = torch.randperm(MAX_TOKENS, generator=generator)[:length].sort().values.expand(rows, -1)
    return model.model.embed_tokens(ids_BL).detach(), positions_BL


@torch.inference_mode()
def read_by_model(model, embeds_BLH, positions_BL):
    cache = cache_of(model, len(embeds_BLH))
    hidden, _ = model.model.decode(embeds_BLH, positions_BL, None, cache.open_rows(*embeds_BLH.shape[:2]))
    return model.lm_head(hidden[:, -1]), cache.open_step().storage


def read_compiled(library, model, embeds_BLH, positions_BL):
    cache = cache_of(model, len(embeds_BLH))
    window = cache.open_rows(*embeds_BLH.shape[:2])
    logits_BV = PromptReader(library, model, MAX_TOKENS).read(embeds_BLH, positions_BL, window)
    return logits_BV, cache.open_step().storage


def assert_close(found, expected, limit: float) -> None:
    assert found.shape == expected.shape
    assert (found - expected).norm() / expected.norm() < limit


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (2, 2), (3, 9), (1, 31), (1, 64), (2, 101), (1, 281)])
@pytest.mark.parametrize("changes", CHANGES)
def test_logits_keys_and_values_are_the_models_up_to_rounding(rows, length, changes, library):
    model = canvas_model(text_config=changes)
    inputs = embedded(model, rows, length)
    kept = inputs[0].clone()
    (found, cells), (expected, true_cells) = read_compiled(library, model, *inputs), read_by_model(model, *inputs)
    limit = rounding_limit(library)
    assert_close(found, expected, limit)
    assert_close(cells[:, :, :rows, :, :length], true_cells[:, :, :rows, :, :length], limit)
    assert torch.equal(inputs[0], kept)


def test_threads_change_nothing(library):
    model = canvas_model()
    inputs = embedded(model, 5, 40)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            logits_BV, cells = read_compiled(library, model, *inputs)
            found.append((logits_BV, cells[:, :, :5, :, :40]))
    finally:
        torch.set_num_threads(threads)
    # The language head is torch's, whose sums depend on the number of threads.
    assert torch.allclose(found[0][0], found[1][0], rtol=0, atol=1e-5)
    assert torch.equal(found[0][1], found[1][1])


def test_a_row_that_is_no_number_spoils_no_other(library):
    model = canvas_model()
    embeds_BLH, positions_BL = embedded(model, 3, 30)
    expected, _ = read_compiled(library, model, embeds_BLH, positions_BL)
    embeds_BLH[1, -1] = float("nan")
    found, _ = read_compiled(library, model, embeds_BLH, positions_BL)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 96},
        {"num_attention_heads": 4},
        {"moe_intermediate_size": 24},
        {"intermediate_size": 40},
        {"n_routed_experts": 65},
    ],
)
def test_other_shapes_are_refused(changes, library):
    with pytest.raises(NoLibraryError, match="other shapes"):
        PromptReader(library, canvas_model(text_config=changes), MAX_TOKENS)


@pytest.mark.parametrize("broken", ["positions", "width", "dtype"])
def test_what_does_not_fit_is_not_handed_to_the_library(broken, library):
    model = canvas_model()
    embeds_BLH, positions_BL = embedded(model, 2, 10)
    if broken == "positions":
        positions_BL = positions_BL[:, 1:]
    embeds_BLH = embeds_BLH[:, :, :64] if broken == "width" else embeds_BLH
    embeds_BLH = embeds_BLH.double() if broken == "dtype" else embeds_BLH
    with pytest.raises(AssertionError):
        PromptReader(library, model, MAX_TOKENS).read(embeds_BLH, positions_BL, cache_of(model, 2).open_rows(2, 10))
