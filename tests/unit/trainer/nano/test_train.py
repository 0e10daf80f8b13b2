"""The training loop on a CPU: a tiny model of the same classes learns, saves and carries on."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from shared.deepseek_ocr.configuration import ClipConfig, DeepseekOcrConfig, SamConfig, TextConfig, geometry_to_json
from shared.deepseek_ocr.draft_head import DraftHead
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, Tiling
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.tokenizer import OcrTokenizer
from tests.support.drawings import SIDE, make_draw
from trainer.nano.corpus.tokenizer import train_tokenizer
from trainer.nano.training.pool import BatchStream, RenderPool
from trainer.nano.training.recipe import Recipe
from trainer.nano.training.shards import load_shards
from trainer.nano.training.trainer import NanoTrainer, RunPaths, draw_validation

RATES = {"budget_s": 1000.0, "learning_rate": 1.5e-3, "matrix_learning_rate": 3e-3}
GEOMETRY = GeometryConfig(
    downsample=2, small_px=SIDE, tile_px=SIDE, global_px=SIDE, squash=(), upscale=False, tiling=Tiling.NATIVE,
    modes=(Mode.SMALL, Mode.GUNDAM),
)  # fmt: skip


def tiny_config(vocab_size: int) -> DeepseekOcrConfig:
    return DeepseekOcrConfig(
        sam_config=SamConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, window_size=2,
            global_layers=(1,), stem_channels=(8, 8, 16, 16), neck_channels=16, downsample_channels=(32, 32),
            downsample_strides=(2, 1),
        ),
        clip_config=ClipConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                               image_size=28),
        text_config=TextConfig(
            vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1,
            moe_implementation="dense",
        ),
        geometry=geometry_to_json(GEOMETRY),
        image_token_id=3,
    )  # fmt: skip


@pytest.fixture
def tokenizer() -> OcrTokenizer:
    return OcrTokenizer(train_tokenizer(["one two three 0 1 2 3"] * 4, vocab_size=320))


def run(tokenizer: OcrTokenizer, out: Path, resume: Path | None = None, **values: float) -> NanoTrainer:
    tokens_of = {d: tokenizer.encode_plain(d)[0] for d in "0123456789"}
    torch.manual_seed(0)
    recipe = Recipe(**RATES, views_per_batch=16, warmup_steps=5, **values)  # type: ignore[arg-type]
    model = DeepseekOcrForConditionalGeneration(tiny_config(320))
    trainer = NanoTrainer(model, tokenizer, recipe, RunPaths(out, resume), torch.device("cpu"))
    pool = RenderPool(partial(make_draw, tokens_of), num_workers=1, max_reuse=20, seed=1, max_held=400)
    stream = BatchStream(pool, SIDE, trainer.square_px, recipe.views_per_batch, threads=1)
    try:
        validation = draw_validation(partial(make_draw, tokens_of), 99, 32, ["line", "page"])
        trainer.run(pool, stream, lambda: validation)
    finally:
        stream.close()
        pool.close()
    return trainer


def records(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_run_learns_saves_and_carries_on(tokenizer: OcrTokenizer, tmp_path: Path) -> None:
    first = run(tokenizer, tmp_path / "a", max_steps=120)
    validation = records(tmp_path / "a")[-1]["validation"]
    assert validation["line_clean_right"] > 0.9, validation  # the end token alone is a half
    assert "page_degraded_right" in validation

    state = json.loads((tmp_path / "a/shards/run.json").read_text())
    assert state["steps"] == first.step

    second = run(tokenizer, tmp_path / "b", resume=tmp_path / "a/shards", max_steps=3, start=1.0)
    state = json.loads((tmp_path / "b/shards/run.json").read_text())
    assert state["steps"] == first.step + second.step
    assert records(tmp_path / "b")[-1]["validation"]["line_clean_right"] > 0.8


def test_torn_shards_are_refused(tokenizer: OcrTokenizer, tmp_path: Path) -> None:
    run(tokenizer, tmp_path / "a", max_steps=1)
    shard = tmp_path / "a/shards/shard-0.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ValueError, match="torn"):
        run(tokenizer, tmp_path / "b", resume=tmp_path / "a/shards", max_steps=1)


def test_a_run_cut_short_says_how_far_its_schedule_went_and_another_goes_on_there(
    tokenizer: OcrTokenizer, tmp_path: Path
) -> None:
    run(tokenizer, tmp_path / "a", max_steps=4)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/stop").touch()
    stopped = run(tokenizer, tmp_path / "b", resume=tmp_path / "a/shards", begin=0.25)
    state = json.loads((tmp_path / "b/shards/run.json").read_text())
    assert stopped.step == 0
    assert 0.25 <= state["share"] < 0.95


def test_the_mean_of_the_weights_is_kept_beside_the_last(tokenizer: OcrTokenizer, tmp_path: Path) -> None:
    trainer = run(tokenizer, tmp_path / "a", max_steps=3, average_decay=0.5)
    last = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    load_shards(trainer.model, tmp_path / "a/shards-mean")
    apart = sum((last[name] - value).abs().sum().item() for name, value in trainer.model.state_dict().items())
    load_shards(trainer.model, tmp_path / "a/shards")
    rounded = sum((last[name] - value).abs().sum().item() for name, value in trainer.model.state_dict().items())
    assert apart > 2 * rounded > 0


def test_the_draft_head_learns_alone_where_the_model_is_to_stay_as_it_is(
    tokenizer: OcrTokenizer, tmp_path: Path
) -> None:
    first = run(tokenizer, tmp_path / "a", max_steps=2)
    second = run(tokenizer, tmp_path / "b", resume=tmp_path / "a/shards", max_steps=3, draft_alone=True)
    saved, head = DeepseekOcrForConditionalGeneration(tiny_config(320)), DraftHead(32, 1e-6)
    load_shards(saved, tmp_path / "a/shards", {"draft": head})
    for name, value in saved.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name
    assert not torch.equal(second.draft.mix.weight, head.mix.weight)
    assert first.step + second.step == 5
