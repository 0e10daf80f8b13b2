import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache, StaticCache

from shared.deepseek_ocr.configuration import TextConfig
from shared.deepseek_ocr.decoder import rotary_tables
from shared.deepseek_ocr.geometry import Mode, plan_views
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.moe import load_balance_loss
from shared.deepseek_ocr.nano_config import NANO_GEOMETRY
from shared.deepseek_ocr.relative_attention import relative_attention, relative_table
from shared.deepseek_ocr.vision import assemble_page
from tests.unit.shared.deepseek_ocr.tiny_models import prompt_ids, tiny_model, views

PAGE_TOKENS = 13  # 80 px: 5 patches, 3 tokens a side, a line break each, the separator


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize(("height", "width"), [(5, 3), (19, 17)])
def test_relative_attention_is_attention_with_the_bias_written_out(height, width, trains):
    torch.manual_seed(0)
    dim = 10
    q, k, v = torch.randn(3, 2, 4, height * width, dim)
    rel_h, rel_w = torch.randn(2 * height - 1, dim), torch.randn(2 * width - 1, dim)
    place = torch.arange(height * width)
    row = place[:, None] // width - place // width + height - 1
    column = place[:, None] % width - place % width + width - 1
    bias = torch.einsum("vnid,ijd->vnij", q, rel_h[row] + rel_w[column])
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    with torch.set_grad_enabled(trains):
        ours = relative_attention(q, k, v, relative_table(rel_h, height), relative_table(rel_w, width))
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(("height", "width"), [(5, 3), (19, 17)])
@torch.inference_mode()
def test_relative_attention_in_bfloat16_differs_by_rounding(height, width):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, height * width, 16)
    tables = [relative_table(torch.randn(2 * side - 1, 16), side) for side in (height, width)]
    exact = relative_attention(q, k, v, *tables)
    rounded = relative_attention(*(each.bfloat16() for each in (q, k, v, *tables)))
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).norm() / exact.norm() < 0.03


@torch.inference_mode()
def test_views_do_not_see_each_other(model: DeepseekOcrForConditionalGeneration):
    many = views(5)
    together = model.encode_views(many)
    alone = torch.cat([model.encode_views(view[None]) for view in many])
    assert float((together - alone).abs().max() / alone.abs().max()) < 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("experts", ["grouped", "dense"])
def test_a_page_does_not_depend_on_its_neighbours(model: DeepseekOcrForConditionalGeneration, experts: str):
    model.set_moe_implementation(experts)
    ids = torch.cat([prompt_ids(PAGE_TOKENS, 5, 6, 7), prompt_ids(PAGE_TOKENS, 50, 9, 11)])
    pages = views(2, seed=4)
    together = model(ids, global_views_BHWC=pages).logits
    for page in range(2):
        alone = model(ids[page : page + 1], global_views_BHWC=pages[page : page + 1]).logits[0]
        torch.testing.assert_close(together[page], alone, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_tiles_of_the_batch_go_to_their_pages(model: DeepseekOcrForConditionalGeneration):
    pages, tiles = views(3, seed=1), views(6, seed=2)
    grids = torch.tensor([[2, 1], [0, 0], [1, 4]])
    # In float32 the order of sums, which the number of threads decides, shows in the fifth digit.
    model = copy.deepcopy(model).double()
    features = model.image_features(pages, tiles, grids)
    first = model.image_features(pages[:1], tiles[:2], [[2, 1]])[0]
    last = model.image_features(pages[2:], tiles[2:], [[1, 4]])[0]
    torch.testing.assert_close(features[0], first, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(features[2], last, rtol=1e-9, atol=1e-9)
    assert [len(page) for page in features] == [3 * 7 + PAGE_TOKENS, PAGE_TOKENS, 12 * 4 + PAGE_TOKENS]


def test_pages_are_laid_out_as_published():
    """Two tiles side by side, then the global view; 0 is the line break, -1 the separator."""
    tiles = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]).unsqueeze(-1)
    page = assemble_page(
        torch.tensor([[10.0], [11], [12], [13]]),
        tiles,
        2,
        1,
        line_break_D=torch.zeros(1),
        separator_D=torch.tensor([-1.0]),
    )
    assert page.flatten().tolist() == [1, 2, 5, 6, 0, 3, 4, 7, 8, 0, 10, 11, 0, 12, 13, 0, -1]


@torch.inference_mode()
def test_number_of_vision_tokens_is_what_the_plan_says(model: DeepseekOcrForConditionalGeneration):
    config = model.config.geometry_config()
    plan = plan_views(400, 150, Mode.GUNDAM, config)
    assert plan.num_tiles > 1
    features = model.image_features(
        views(1, plan.global_px), views(plan.num_tiles, plan.tile_px), [[plan.tile_columns, plan.tile_rows]]
    )
    assert len(features[0]) == plan.num_vision_tokens


def test_nano_reads_400_tokens_a_view():
    assert plan_views(100, 100, Mode.SMALL, NANO_GEOMETRY).num_vision_tokens == 20 * 21 + 1


def test_wrong_numbers_of_image_tokens_or_tiles_are_errors(model: DeepseekOcrForConditionalGeneration):
    with pytest.raises(ValueError, match=r"\[12\] image tokens, their images give \[13\]"):
        model(prompt_ids(12, 5), global_views_BHWC=views(1))
    with pytest.raises(ValueError, match="tile grids"):
        model.image_features(views(1), views(3), [[2, 1]])
    with pytest.raises(ValueError, match="uint8"):
        model.encode_views(views(1).float())
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()


@torch.inference_mode()
def test_all_ways_to_compute_experts_agree(model: DeepseekOcrForConditionalGeneration):
    ids = torch.arange(64).view(2, 32)
    logits = []
    for experts in ("grouped", "dense", "stacked"):
        model.set_moe_implementation(experts)
        logits.append(model(ids).logits)
    for others in logits[1:]:
        torch.testing.assert_close(others, logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("experts", ["dense", "stacked"])
def test_all_ways_to_compute_experts_have_the_gradients_of_visits(experts: str):
    found = []
    for implementation in ("grouped", experts):
        model = tiny_model(moe_implementation=implementation)
        embeds = model.get_input_embeddings()(torch.arange(64).view(2, 32)).detach().requires_grad_()
        model(inputs_embeds=embeds, labels=torch.arange(64).view(2, 32)).loss.backward()
        found.append(embeds.grad)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("make_cache", ["dynamic", "static"])
def test_decoding_with_a_cache_gives_the_logits_of_the_whole_sequence(
    model: DeepseekOcrForConditionalGeneration, make_cache: str
):
    ids = prompt_ids(PAGE_TOKENS, 5, 6, 7, 8, 9, 10)
    whole = model(ids, global_views_BHWC=views(1)).logits
    cache = DynamicCache() if make_cache == "dynamic" else StaticCache(model.config, max_cache_len=32)
    steps = [model(ids[:, :-3], global_views_BHWC=views(1), past_key_values=cache).logits]
    steps += [model(ids[:, -3:-2], past_key_values=cache).logits, model(ids[:, -2:], past_key_values=cache).logits]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-4)


class SlotCache:
    """Rows of fixed length that sequences of different length share, as a service engine keeps them."""

    def __init__(self, rows: int, length: int, config: TextConfig) -> None:
        shape = (rows, config.num_attention_heads, length, config.head_dim)
        self.store = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(config.num_hidden_layers)]
        self.row_index = torch.arange(rows)
        self.positions = torch.empty(0)

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int):
        stored = self.store[layer]
        for store, new in zip(stored, (keys, values), strict=True):
            for row in self.row_index.tolist():
                store[row, :, self.positions[row]] = new[row]
        return stored


@torch.inference_mode()
@pytest.mark.parametrize("as_bool", [True, False])
def test_own_cache_with_explicit_mask_and_positions_by_row(model: DeepseekOcrForConditionalGeneration, as_bool: bool):
    prompts = [prompt_ids(PAGE_TOKENS, 5, 6, 7), prompt_ids(PAGE_TOKENS, 9, 10, 11, 12, 13)]
    expected = [model(ids, global_views_BHWC=views(1)).logits[0, -1] for ids in prompts]
    features = model.image_features(views(1))
    cache = SlotCache(2, 24, model.config.text_config)
    longest = max(ids.shape[1] for ids in prompts)
    embeds = torch.cat([F.pad(model.embed_inputs(ids, features), (0, 0, 0, longest - ids.shape[1])) for ids in prompts])
    cache.positions = torch.arange(longest).expand(2, -1)
    mask = torch.arange(24) <= cache.positions[:, None, :, None]
    hidden, _ = model.decode(embeds, cache.positions, mask if as_bool else additive(mask), cache)
    for row, ids in enumerate(prompts):
        logits = model.lm_head(hidden[row, ids.shape[1] - 1])
        torch.testing.assert_close(logits, expected[row], rtol=1e-4, atol=1e-4)
    # One more token each, at different positions of one batch.
    tokens = torch.tensor([[20], [21]])
    positions = torch.tensor([[ids.shape[1]] for ids in prompts])
    cache.positions = positions
    mask = torch.arange(24) <= positions[:, None, :, None]
    logits = model(
        tokens, past_key_values=cache, attention_mask=mask if as_bool else additive(mask), position_ids=positions
    ).logits[:, -1]
    for row, ids in enumerate(prompts):
        whole = model(torch.cat((ids, tokens[row : row + 1]), dim=1), global_views_BHWC=views(1)).logits[0, -1]
        torch.testing.assert_close(logits[row], whole, rtol=1e-4, atol=1e-4)


def additive(mask: torch.Tensor):
    return torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)


@torch.inference_mode()
def test_left_padding_with_a_2d_mask_changes_nothing(model: DeepseekOcrForConditionalGeneration):
    ids = torch.tensor([[0, 5, 6, 7, 8]])
    padded = torch.tensor([[2, 2, 0, 5, 6, 7, 8]])
    mask = (padded != 2).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    ours = model(padded, attention_mask=mask, position_ids=positions).logits[:, 2:]
    torch.testing.assert_close(ours, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_generate_encodes_images_once_and_reads_batches(
    model: DeepseekOcrForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
):
    calls = []
    encode = type(model).encode_views
    monkeypatch.setattr(
        type(model), "encode_views", lambda self, views: calls.append(len(views)) or encode(self, views)
    )
    ids = torch.cat([prompt_ids(PAGE_TOKENS, 5, 6, 7), prompt_ids(PAGE_TOKENS, 50, 9, 11)])
    arguments = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 2, "suppress_tokens": [3]}
    both = model.generate(ids, global_views_BHWC=views(2), **arguments)
    assert calls == [2]
    alone = model.generate(ids[1:], global_views_BHWC=views(2)[1:], **arguments)
    assert both[1].tolist() == alone[0].tolist()
    uncached = model.generate(ids[1:], global_views_BHWC=views(2)[1:], use_cache=False, **arguments)
    assert uncached[0].tolist() == alone[0].tolist()


@pytest.mark.parametrize("experts", ["grouped", "dense"])
def test_gradients_reach_every_parameter(experts: str):
    model = tiny_model(router_aux_loss_coef=0.01).train()
    model.set_moe_implementation(experts)
    ids = prompt_ids(3 * 7 + PAGE_TOKENS, *range(4, 60))
    labels = ids.masked_fill(ids == 3, -100)
    model(ids, global_views_BHWC=views(1), tiles_THWC=views(2), tile_grids_B2=[[2, 1]], labels=labels).loss.backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert without == []


def test_loss_is_shifted_masked_and_has_the_balance_penalty():
    model = tiny_model(router_aux_loss_coef=0.5)
    ids = torch.tensor([[0, 5, 6, 7, 8]])
    labels = torch.tensor([[-100, -100, 6, 7, -100]])
    plain = model(ids, labels=labels)
    log_probabilities = plain.logits.log_softmax(-1)[0]
    expected = -(log_probabilities[1, 6] + log_probabilities[2, 7]) / 2
    torch.testing.assert_close(plain.loss, expected)
    assert plain.aux_loss is None
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=4).loss, expected / 2)
    trained = model.train()(ids, labels=labels)
    torch.testing.assert_close(trained.loss, expected + 0.5 * trained.aux_loss)


def test_balance_penalty_is_one_for_equal_shares_and_grows():
    even = torch.full((4, 4), 0.25)
    assert float(load_balance_loss(even, torch.tensor([[0], [1], [2], [3]]))) == pytest.approx(1.0)
    skewed = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).expand(4, 4)
    assert float(load_balance_loss(skewed, torch.zeros(4, 1, dtype=torch.long))) == pytest.approx(2.8)


@torch.inference_mode()
def test_logits_to_keep(model: DeepseekOcrForConditionalGeneration):
    ids = torch.tensor([[0, 5, 6, 7, 8]])
    whole = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=1).logits, whole[:, -1:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([1, 3])).logits, whole[:, [1, 3]])


def test_unknown_moe_implementation_is_an_error():
    model = tiny_model()
    model.set_moe_implementation("sparse")
    with pytest.raises(ValueError, match="grouped, dense"):
        model(torch.tensor([[0, 5]]))


def test_blocks_compile_without_graph_breaks():
    """What nano's training compiles: encoder blocks and decoder layers, forward and backward."""
    model = tiny_model(moe_implementation="dense").train()
    grid = torch.randn(1, 5, 5, 16, requires_grad=True)
    tokens = torch.randn(2, 7, 24, requires_grad=True)
    rotary = rotary_tables(torch.arange(7)[None], 12, 1e4, torch.float32)
    for block in model.model.sam_model.blocks[:2]:
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(grid), block(grid))
        compiled(grid).sum().backward()
    layer = model.model.layers[1]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens, rotary)[0], layer(tokens, rotary)[0])
    compiled(tokens, rotary)[0].sum().backward()


def test_generate_stops_at_the_end_token():
    model = tiny_model(eos_token_id=1)
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (1, 2)
    ids = torch.tensor([[0, 5, 6]])
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[1] = model(ids).last_hidden_state[0, -1]
    assert model.generate(ids, max_new_tokens=5, do_sample=False).tolist() == [[0, 5, 6, 1]]


@torch.inference_mode()
def test_a_band_of_all_rows_is_the_view(model):
    pixels = views(2)
    torch.testing.assert_close(model.encode_bands(pixels, 0), model.encode_views(pixels), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_band_has_the_positions_of_its_rows(model):
    pixels = views(1)[:, :32]
    top, below = model.encode_bands(pixels, 0), model.encode_bands(pixels, 1)
    assert top.shape == below.shape == (1, 3, 24)
    assert not torch.allclose(top, below, atol=1e-2)
    # A model whose first rows have the positions of the rows that the second band takes.
    moved = copy.deepcopy(model)
    sam, clip = moved.model.sam_model, moved.model.vision_model.embeddings
    sam.pos_embed.copy_(sam.pos_embed.roll(-2, dims=1))
    clip.position_embedding.weight[1:4] = model.model.vision_model.embeddings.position_embedding.weight[4:7]
    torch.testing.assert_close(moved.encode_bands(pixels, 0), below, rtol=1e-5, atol=1e-5)


def test_a_band_beyond_the_view_is_refused(model):
    with pytest.raises(ValueError, match="no band of 2 x 5 from row 4"):
        model.encode_bands(views(1)[:, :32], 2)
    with pytest.raises(ValueError, match="no band"):
        model.encode_bands(views(1)[:, :32, :64], 0)
