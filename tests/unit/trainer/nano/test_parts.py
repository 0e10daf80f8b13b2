"""The parts of nano's training: curriculum, optimiser, degradation, second task, pool."""

from __future__ import annotations

import io
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from service.engine.cpu.bands import Band, BandAssembler, BandFeatures
from shared.deepseek_ocr.checkpoint import save_checkpoint
from shared.deepseek_ocr.draft_head import DraftHead, save_draft_head
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.nano_config import nano_config
from shared.deepseek_ocr.tokenizer import OcrTokenizer
from tests.support.drawings import blank, draw_blank
from tests.support.nano import NANO, needs_nano
from tests.unit.shared.deepseek_ocr.test_model_ocr2 import write_tokenizer
from tests.unit.shared.deepseek_ocr.tiny_models import tiny_model
from trainer.nano.training.augment import Degradation, cut_views
from trainer.nano.training.jpeg import jpeg_loss
from trainer.nano.training.muon import Muon, build_optimizers, orthogonalise
from trainer.nano.training.pool import BatchStream, RenderPool, Sample, band_top, build_batch
from trainer.nano.training.recipe import CURRICULUM, TIERS, Recipe, learning_rate_factor, stage_at
from trainer.nano.training.shards import carry_on, save_shards
from trainer.nano.training.spotting import Spotter, label_squares
from trainer.nano.training.trainer import NanoTrainer, RunPaths, spoil_tokens


def test_curriculum_meets_its_knots_and_mixes_between() -> None:
    assert stage_at(0.0).tiers == CURRICULUM[0].tiers
    assert stage_at(1.0).severity == CURRICULUM[-1].severity
    between = stage_at((CURRICULUM[1].at + CURRICULUM[2].at) / 2)
    assert between.severity == pytest.approx((CURRICULUM[1].severity + CURRICULUM[2].severity) / 2)
    assert sum(between.tiers.values()) == pytest.approx(1.0)
    assert set(between.tiers) <= set(TIERS)


def test_learning_rate_warms_up_holds_and_ends_at_zero() -> None:
    recipe = Recipe(warmup_steps=10, decay_share=0.5)
    assert learning_rate_factor(0, 0.0, recipe) == pytest.approx(0.1)
    assert learning_rate_factor(100, 0.5, recipe) == 1.0
    assert learning_rate_factor(100, 0.75, recipe) == pytest.approx(0.5)
    assert learning_rate_factor(100, 1.0, recipe) == 0.0


@pytest.mark.parametrize("shape", [(3, 24, 64), (2, 64, 24)])
def test_orthogonalised_updates_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape) * 7))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_muon_reaches_the_minimum_of_a_matrix_problem() -> None:
    torch.manual_seed(0)
    target, weight = torch.randn(16, 32), torch.nn.Parameter(torch.zeros(16, 32))
    optimizer = Muon([weight], lr=0.05)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        (weight - target).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (weight - target).norm() / target.norm() < 0.1


def test_each_parameter_has_one_optimizer_and_tables_stay_with_adamw() -> None:
    model = torch.nn.ModuleDict(
        {"embed": torch.nn.Embedding(40, 32), "hidden": torch.nn.Linear(32, 32), "conv": torch.nn.Conv2d(16, 16, 3)}
    )
    muon, adamw = build_optimizers(model, 1e-3, 1e-3, 0.1)
    by_muon = {id(p) for g in muon.param_groups for p in g["params"]}
    by_adamw = [id(p) for g in adamw.param_groups for p in g["params"]]
    assert by_muon == {id(model["hidden"].weight), id(model["conv"].weight)}
    assert sorted([*by_muon, *by_adamw]) == sorted(id(p) for p in model.parameters())


def test_jpeg_loss_is_close_to_what_pillow_loses() -> None:
    rng = np.random.default_rng(0)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (12, 12), np.uint8)).resize((64, 64), 3))
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, "JPEG", quality=30)
    reference = np.asarray(Image.open(buffer)).astype(np.float32) / 255
    ours = jpeg_loss(torch.from_numpy(smooth.astype(np.float32) / 255)[None], torch.tensor([30.0]))[0].numpy()
    assert np.abs(ours - reference).mean() < 0.004
    assert np.abs(ours - smooth / 255.0).mean() > 0.008


def test_no_severity_leaves_clean_ink_on_white_with_grey_around() -> None:
    ink = torch.full((2, 64, 64), 255, dtype=torch.uint8)
    ink[:, 30:34, 20:40] = 0
    paper = torch.tensor([[8.0, 16.0, 56.0, 48.0]]).expand(2, 4)
    colour, placement = Degradation(0.0, torch.Generator().manual_seed(0))(ink, paper)
    assert (colour[:, :, 31, 30] < 5).all()
    assert (colour[:, :, 20, 10] > 250).all()
    assert (colour[:, :, 2, 2] == 127).all()
    torch.testing.assert_close(placement, torch.eye(2, 3).expand(2, 2, 3), atol=1e-6, rtol=0)


def test_full_severity_keeps_text_visible_and_differs_by_image() -> None:
    ink = torch.full((32, 64, 128), 255, dtype=torch.uint8)
    ink[:, 24:40, 30:100:8] = 0
    paper = torch.tensor([[0.0, 0.0, 128.0, 64.0]]).expand(32, 4)
    colour, _ = Degradation(1.0, torch.Generator().manual_seed(3))(ink, paper)
    spread = colour.float().mean(1).flatten(1).std(1)
    assert (spread > 3).float().mean() > 0.9
    assert len({round(value, 1) for value in spread.tolist()}) > 16


def test_worn_type_stays_on_its_letters_and_differs_along_a_line() -> None:
    coverage = torch.zeros(40, 40, 400)
    coverage[:, 12:28, ::8] = 1
    coverage[:, 12:28, 1::8] = 1
    worn = Degradation(1.0, torch.Generator().manual_seed(1))._wear(coverage.clone())
    changed = (worn != coverage).flatten(1).any(1)
    assert 4 <= changed.sum() <= 12
    assert not worn[:, :8].any()
    assert not worn[:, 32:].any()
    letters = worn[changed][:, 12:28].unflatten(2, (20, 20)).mean((1, 3))
    assert letters.std(1).max() > 0.03
    assert (letters.mean(1) > 0.05).all()


def test_needle_print_is_made_of_dots_where_the_ink_was() -> None:
    coverage = torch.zeros(100, 60, 90)
    coverage[:, 20:40, 30:60] = 1
    printed = Degradation(1.0, torch.Generator().manual_seed(1))._needles(coverage.clone())
    changed = (printed != coverage).flatten(1).any(1)
    assert 11 <= changed.sum() <= 15
    assert not printed[:, :16].any()
    assert not printed[:, 44:].any()
    inside = printed[changed][:, 22:38, 33:57]
    assert (inside.flatten(1).std(1) > 0.05).float().mean() > 0.6
    assert (inside.mean((1, 2)) > 0.25).all()


def test_aged_paper_is_darker_in_places_and_keeps_ink_below_paper() -> None:
    grey = torch.ones(40, 64, 128)
    grey[:, 20:40, ::4] = 0.2
    aged = Degradation(1.0, torch.Generator().manual_seed(2))._age(grey.clone())
    changed = (aged != grey).flatten(1).any(1)
    assert 4 <= changed.sum() <= 10
    assert (aged <= grey).all()
    assert (aged[:, 20:40, 2::4] - aged[:, 20:40, ::4] > 0.05).all()


def test_views_are_tiles_in_reading_order_and_the_shrunken_paper() -> None:
    canvas = torch.zeros(1, 3, 32, 64, dtype=torch.uint8)
    canvas[..., 32:] = 200
    paper = torch.tensor([[0.0, 0.0, 64.0, 32.0]])
    whole, tiles = cut_views(canvas, paper, columns=2, rows=1, side_px=32, shrink=2)
    assert tiles[0, 0].max() == 0
    assert tiles[0, 1].min() == 200
    assert whole.shape == (1, 32, 32, 3)
    assert (whole[0, :7] == 127).all()  # twice as wide as high: grey above and below
    assert (whole[0, 16, 2:13] == 0).all()
    assert (whole[0, 16, 20:30] == 200).all()


def test_labels_follow_the_ink_that_degradation_moved() -> None:
    marks = torch.tensor([[0, 5, 5, 3], [1, 5, 5, 4]])
    shifted = torch.eye(2, 3).repeat(2, 1, 1)
    shifted[1, 0, 2] = -0.5  # the second page's ink moves right by a quarter of the canvas
    labels = label_squares(marks, shifted, (64, 64), 16, 8)
    assert labels.shape == (2, 4, 4, 8)
    assert labels.nonzero().tolist() == [[0, 0, 0, 3], [1, 0, 1, 4]]


def test_ink_moved_off_the_canvas_leaves_no_label() -> None:
    away = torch.eye(2, 3)[None].clone()
    away[0, 0, 2] = 3.0
    assert not label_squares(torch.tensor([[0, 5, 5, 3]]), away, (64, 64), 16, 8).any()


def test_spotting_learns_which_character_a_token_shows() -> None:
    torch.manual_seed(0)
    spotter, tokens = Spotter(16, 8), torch.randn(1, 8, 16)
    labels = torch.eye(8, dtype=torch.bool)[None]
    optimizer = torch.optim.Adam(spotter.parameters(), lr=0.1)
    first = spotter.loss(tokens, labels).item()
    for _ in range(200):
        optimizer.zero_grad()
        spotter.loss(tokens, labels).backward()
        optimizer.step()
    assert spotter.loss(tokens, labels).item() < 0.05 < first


def test_a_run_carries_on_from_a_shipped_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shipped, fresh = tiny_model(), tiny_model()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(1.0)
    save_checkpoint(shipped, tmp_path, storage="int8")
    write_tokenizer(tmp_path)
    assert carry_on(fresh, tmp_path) == {}
    for name, value in shipped.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], value, atol=0.02, rtol=0.01)
    text = shipped.config.text_config
    drafting, untrained = (DraftHead(text.hidden_size, text.rms_norm_eps) for _ in range(2))
    save_draft_head(drafting, tmp_path)
    assert carry_on(fresh, tmp_path, {"draft": untrained}) == {}
    torch.testing.assert_close(untrained.mix.weight, drafting.mix.weight, atol=0.02, rtol=0.01)


def test_a_run_carries_on_with_its_heads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved, fresh = Spotter(16, 8), Spotter(16, 8)
    drafting, untouched = DraftHead(16, 1e-6), DraftHead(16, 1e-6)
    before = untouched.mix.weight.clone()
    torch.nn.init.normal_(saved.head.weight)
    save_shards(tiny_model(), tmp_path, {"steps": 3, "seconds": 2, "pages": 1}, {"spotter": saved})
    assert carry_on(tiny_model(), tmp_path, {"spotter": fresh, "draft": untouched})["steps"] == 3
    torch.testing.assert_close(fresh.head.weight, saved.head.weight, atol=0.02, rtol=0.01)
    assert torch.equal(untouched.mix.weight, before)  # a run before heads drafted has none
    save_shards(tiny_model(), tmp_path, {"steps": 3, "seconds": 2, "pages": 1}, {"spotter": saved, "draft": drafting})
    assert carry_on(tiny_model(), tmp_path, {"draft": untouched})["steps"] == 3
    torch.testing.assert_close(untouched.mix.weight, drafting.mix.weight, atol=0.02, rtol=0.01)
    assert carry_on(tiny_model(), tmp_path)["steps"] == 3


def test_drafts_are_counted_up_to_the_first_that_is_wrong() -> None:
    """The head drafts the next number up, which is wrong in one place of the second row."""
    size, width = 16, 6
    answer = torch.arange(1, width + 1).repeat(2, 1)
    answer[1, 3] = 12
    answer[1, 5] = -100
    trainer = SimpleNamespace(
        device=torch.device("cpu"),
        draft=lambda hidden, embedded: embedded.roll(1, dims=-1) * 20 + hidden * 0,
        model=SimpleNamespace(
            model=SimpleNamespace(embed_tokens=torch.nn.Embedding.from_pretrained(torch.eye(size))),
            lm_head=torch.nn.Identity(),
        ),
    )
    loss, drafted = NanoTrainer._draft(trainer, torch.zeros(2, width, size), answer.clamp(min=0), answer)  # type: ignore[arg-type]
    # Row 0: five and four. Row 1 (1 2 3 12 5): of four and three places, two (2, 3) and one (3) are right in a row.
    assert drafted.item() == pytest.approx((5 + 2) / 9 + (4 + 1) / 7)
    assert loss.item() > 1


def test_spoiling_changes_a_share_of_the_tokens_and_brings_in_no_padding() -> None:
    answer = torch.arange(1, 4097).view(8, 512)
    answer[:, 400:] = 0
    spoilt = spoil_tokens(answer, 0.1, torch.Generator().manual_seed(0))
    changed = spoilt != answer
    assert 0.05 < changed.float().mean() < 0.11
    assert (spoilt[changed] > 0).all()
    assert torch.equal(spoil_tokens(answer, 0.0, torch.Generator()), answer)


def test_carrying_on_from_an_empty_folder_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.json"):
        carry_on(torch.nn.Linear(1, 1), tmp_path)


def test_batch_centres_pages_and_pads_answers() -> None:
    samples = [blank(marks=[(3, 4, 7)]).packed("line"), blank(width=30).packed("line")]
    batch = build_batch(samples, 64)
    assert batch.ink_BHW.shape == (2, 64, 64)
    assert batch.paper_B4.tolist() == [[12, 22, 52, 42], [17, 22, 47, 42]]
    assert batch.answer_BT[0].tolist()[:4] == [5, 6, 1, -100]
    assert batch.marks_M4.tolist() == [[0, 15, 26, 7]]


def test_a_batch_of_bands_has_pages_where_a_view_would_have_them() -> None:
    line, canvas = blank(height=50, marks=[(3, 4, 7)]), blank(height=90)
    batch = build_batch([line.packed("line")], 640, 256, 32)
    assert batch.ink_BHW.shape == (1, 160, 640)
    # Centred in the view it would begin at 295, which is 7 px into a row of tokens.
    assert batch.paper_B4.tolist() == [[300, 7, 340, 57]]
    assert batch.marks_M4.tolist() == [[0, 303, 11, 7]]
    assert build_batch([canvas.packed("lines")], 640, 224, 32).paper_B4[0, 1] == 0
    assert build_batch([blank(height=155).packed("few")], 640, 224, 32).paper_B4[0, 3] == 160
    assert (blank(height=161).packed("few").bucket or ())[3] == 320
    assert (blank(height=321).packed("few").bucket or ())[3] == 0
    assert (blank(height=100, grid=(2, 1)).packed("crop").bucket or ())[3] == 0
    assert [band_top(px, 640, 32) for px in (160, 320)] == [224, 160]


@pytest.mark.parametrize(("band_share", "pages", "height"), [(1.0, 8, 160), (0.0, 2, 640)])
def test_a_stream_fills_batches_of_bands_with_more_pages(band_share: float, pages: int, height: int) -> None:
    pool = RenderPool(draw_blank, num_workers=1, max_reuse=100, seed=0, max_held=32)
    stream = BatchStream(pool, 640, 32, 2, band_share, threads=1)
    try:
        batches = [batch for _, batch in zip(range(6), stream, strict=False)]
    finally:
        stream.close()
        pool.close()
    assert {tuple(batch.ink_BHW.shape) for batch in batches} == {(pages, height, 640)}
    assert {batch.top_px for batch in batches} <= ({224, 256, 288} if band_share else {None})


@needs_nano
@pytest.mark.parametrize(("rows", "first_row"), [(5, 8), (10, 5)])
def test_bands_are_learnt_from_as_a_cpu_reads_them(tmp_path: Path, rows: int, first_row: int) -> None:
    config = nano_config()
    model = DeepseekOcrForConditionalGeneration(config)
    tokenizer = OcrTokenizer.from_file(NANO / "tokenizer.json")
    recipe = Recipe(views_per_batch=1)
    trainer = NanoTrainer(model, tokenizer, recipe, RunPaths(tmp_path, NANO), torch.device("cpu"))
    pixels = torch.randint(0, 256, (2, rows * 32, 640, 3), dtype=torch.uint8)
    with torch.no_grad():
        features, squares, places = trainer._band_embeddings(pixels, first_row)
        whole = BandAssembler(model, 32).assemble(
            BandFeatures(Band(first_row, rows, first_row, first_row + rows), squares[1].flatten(0, 1))
        )
    assert places.tolist() == list(whole.places)
    torch.testing.assert_close(features[1], whole.features_KD, atol=1e-4, rtol=1e-3)


def test_answers_too_long_for_every_bucket_have_none() -> None:
    assert Sample(0, 0, 0, 1, 1, b"", b"00" * 5000, b"").bucket is None


def test_pool_pauses_when_full_and_renews_when_asked() -> None:
    pool = RenderPool(draw_blank, num_workers=1, max_reuse=2, seed=0, max_held=32)
    try:
        wait_for(lambda: sum(pool.counts().values()) >= 32)
        paused = pool.drawn
        assert pool.take(0, lambda tiles: 8) is not None
        assert pool.take(4, lambda tiles: 1) is None
        pool.want({"line": 1.0}, 50)
        pool.renew()
        wait_for(lambda: pool.drawn > paused + 200)
        assert sum(pool.counts().values()) <= 32 + 16
        wait_for(lambda: any(s.width_px == 60 for s in pool.take(0, lambda tiles: 8) or []))
    finally:
        pool.close()


def wait_for(condition) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
