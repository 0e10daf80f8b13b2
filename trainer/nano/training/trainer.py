"""The training run of nano: from nothing, or on from an earlier run's shards, within a budget of time.

Owns the loop. What is learned from comes from `pool`, how strongly it is degraded from `augment`, all numbers from
`recipe`.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.draft_head import DraftHead
from shared.deepseek_ocr.geometry import PADDING_GREY
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.tokenizer import OcrTokenizer
from shared.images.canvases import KEPT_ROWS
from trainer.nano.training.augment import Degradation, cut_views
from trainer.nano.training.muon import build_optimizers
from trainer.nano.training.parallel import Peers
from trainer.nano.training.pool import (
    Batch,
    BatchStream,
    Bucket,
    DrawFunction,
    RenderPool,
    Sample,
    band_top,
    build_batch,
)
from trainer.nano.training.recipe import PDF_TIERS, TIERS, Recipe, learning_rate_factor, stage_at
from trainer.nano.training.shards import carry_on, save_shards
from trainer.nano.training.spotting import Spotter, label_squares

NUM_CHARACTERS = 512
"""Logits of the spotting head; `draw.CHARSET` holds fewer."""
PADDING_STEPS = 100
"""After so many the vision tokens of padding are computed again."""
DRAFTS = 2
"""Tokens that the draft head learns to look ahead."""
DRAWN_TIERS = frozenset(TIERS) - PDF_TIERS


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Where a run reads and writes."""

    out: Path
    resume: Path | None = None


class NanoTrainer:
    """One run; `run` returns when the budget is spent or the stop file appears."""

    def __init__(
        self,
        model: DeepseekOcrForConditionalGeneration,
        tokenizer: OcrTokenizer,
        recipe: Recipe,
        paths: RunPaths,
        device: torch.device,
        peers: Peers | None = None,
    ) -> None:
        model.to(device)  # type: ignore[arg-type]  # wrapped by transformers, which loses its signature
        self.model = model
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.paths = paths
        self.device = device
        self.peers = peers or Peers()
        self.side_px = model.config.geometry_config().tile_px
        self.step = 0
        self.history: dict[str, float] = {}
        text = model.config.text_config
        self.spotter = Spotter(text.hidden_size, NUM_CHARACTERS).to(device)
        self.draft = DraftHead(text.hidden_size, text.rms_norm_eps).to(device)
        self._heads = {"spotter": self.spotter, "draft": self.draft}
        if paths.resume is not None:
            self.history = carry_on(self.model, paths.resume, self._heads)
        for module in (self.model, *self._heads.values()):
            self.peers.start_alike(module)
            module.requires_grad_(module is self.draft or not recipe.draft_alone)
        self.square_px = self.side_px // math.isqrt(tokens_in_view(model))
        self.optimizers = build_optimizers(
            nn.ModuleList([model, self.spotter, self.draft]),
            recipe.learning_rate,
            recipe.matrix_learning_rate,
            recipe.weight_decay,
        )
        self._padding: tuple[int, Tensor] | None = None
        self._mean = [parameter.detach().clone() for parameter in self.model.parameters()]
        self._base_rates = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        self._prompts = [
            torch.tensor(tokenizer.encode_trusted(prompt_for(task)), device=device)
            for task in (Task.FREE, Task.FREE, Task.FREE, Task.MARKDOWN)
        ]
        self._generator = torch.Generator(device=device).manual_seed(recipe.seed + 1 + self.peers.rank)
        self._random = random.Random(recipe.seed + self.peers.rank)
        paths.out.mkdir(parents=True, exist_ok=True)

    def compile(self) -> None:
        """Compile blocks one by one: each kind once, instead of the whole network for every grid."""
        torch._dynamo.config.recompile_limit = 64
        model = self.model.model
        sam = model.sam_model
        # Stem and neck run over the largest maps: unfused, their norms took a fifth of the step.
        for block in [sam.patch_embed, sam.neck, *sam.blocks, *model.vision_model.transformer.layers]:
            block.compile(dynamic=False)
        for layer in model.layers:
            layer.compile(dynamic=True)

    def loss(
        self, batch: Batch, severity: float, prompt: Tensor, generator: torch.Generator, token_noise: float = 0.0
    ) -> dict[str, Tensor]:
        """Mean cross-entropy over a batch's answers, and the share of answer tokens guessed right.

        Args:
            batch: pages of one grid.
            severity: strength of their degradation.
            prompt: tokens between page and answer.
            generator: where chance comes from.
            token_noise: share of the answer's tokens that the decoder is fed wrongly.

        Returns:
            Scalars: `loss`, `router`, `spotting`, `draft` (loss), `right`, `drafted` (right drafts in a row, on
            average), `feature_size`.
        """
        ink, paper, answer_BT = (
            t.to(self.device, non_blocking=True) for t in (batch.ink_BHW, batch.paper_B4, batch.answer_BT)
        )
        with torch.no_grad():
            colour, placement = Degradation(severity, generator, self.side_px)(ink, paper)
            labels = label_squares(
                batch.marks_M4.to(self.device, non_blocking=True),
                placement, (ink.shape[1], ink.shape[2]), self.square_px, NUM_CHARACTERS,
            )  # fmt: skip
            # 640 is divisible by 1 and 2, the largest grid shrinks 9 times: pairs of pixels are enough to average.
            shrink = 2 if batch.columns else 1
            globals_BHWC, tiles_BTHWC = cut_views(colour, paper, batch.columns, batch.rows, self.side_px, shrink)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            if batch.top_px is None:
                page_BPD, squares_BHWD = self._page_embeddings(globals_BHWC, tiles_BTHWC, batch.columns, batch.rows)
                places_P = torch.arange(page_BPD.shape[1], device=self.device)
            else:
                page_BPD, squares_BHWD, places_P = self._band_embeddings(globals_BHWC, batch.top_px // self.square_px)
            spotting = self.spotter.loss(squares_BHWD.flatten(1, 2), labels.flatten(1, 2))
            fed_BT = spoil_tokens(answer_BT.clamp(min=0), token_noise, generator)
            logits_BTV, hidden_BTD, router_loss = self._answer_logits(page_BPD, places_P, prompt, fed_BT)
            cross_entropy = F.cross_entropy(logits_BTV.flatten(0, 1).float(), answer_BT.flatten(), ignore_index=-100)
            draft, drafted = self._draft(hidden_BTD, fed_BT, answer_BT)
        known = answer_BT >= 0
        right = ((logits_BTV.argmax(-1) == answer_BT) & known).sum() / known.sum()
        return {
            "loss": cross_entropy,
            "router": router_loss,
            "spotting": spotting,
            "draft": draft,
            "right": right.detach(),
            "drafted": drafted.detach(),
            "feature_size": squares_BHWD.detach().float().square().mean().sqrt(),
        }

    def _page_embeddings(
        self, globals_BHWC: Tensor, tiles_BTHWC: Tensor, columns: int, rows: int
    ) -> tuple[Tensor, Tensor]:
        """Vision tokens of a batch: as `assemble_page` orders them `[B, P, D]`, and as a grid `[B, H, W, D]`."""
        model = self.model
        views = torch.cat([globals_BHWC, tiles_BTHWC.flatten(0, 1)])
        spare = self.recipe.views_per_batch - len(views)
        if spare > 0:  # one shape for the compiled encoder
            views = torch.cat([views, views.new_zeros(spare, *views.shape[1:])])
        tokens_VND = model.encode_views(views)
        B = len(globals_BHWC)
        n = math.isqrt(tokens_VND.shape[1])
        squares = tokens_VND[:B].unflatten(1, (n, n))
        parts = [self._with_line_breaks(squares), model.model.view_seperator.to(tokens_VND.dtype).expand(B, 1, -1)]
        if columns:
            tiles = tokens_VND[B : B + B * rows * columns].view(B, rows, columns, n, n, -1)
            squares = tiles.transpose(2, 3).reshape(B, rows * n, columns * n, -1)
            parts.insert(0, self._with_line_breaks(squares))
        return torch.cat(parts, 1), squares

    def _with_line_breaks(self, grid_BHWD: Tensor) -> Tensor:
        breaks = self.model.model.image_newline.to(grid_BHWD.dtype).expand(*grid_BHWD.shape[:2], 1, -1)
        return torch.cat([grid_BHWD, breaks], 2).flatten(1, 2)

    def _band_embeddings(self, bands_BHWC: Tensor, first_row: int) -> tuple[Tensor, Tensor, Tensor]:
        """Vision tokens of bands, as `service.engine.cpu.bands` makes them, and where they are among those of the view.

        Args:
            bands_BHWC: uint8, all of one height.
            first_row: where they begin in their views, in rows of tokens.

        Returns:
            `[B, P, D]`, as a grid `[B, H, W, D]`, and the places `[P]`.
        """
        model, (B, H) = self.model, bands_BHWC.shape[:2]
        spare = self.recipe.views_per_batch * self.side_px // H - B
        bands = bands_BHWC
        if spare > 0:
            bands = torch.cat([bands, bands.new_zeros(spare, *bands.shape[1:])])
        rows, side = H // self.square_px, self.side_px // self.square_px
        squares = model.encode_bands(bands, first_row)[:B].unflatten(1, (rows, side))
        padding_HWD = self._padding_tokens().to(squares.dtype)
        first, end = max(0, first_row - KEPT_ROWS), min(side, first_row + rows + KEPT_ROWS)
        above, below = padding_HWD[first:first_row], padding_HWD[first_row + rows : end]
        shown = torch.cat([above.expand(B, -1, -1, -1), squares, below.expand(B, -1, -1, -1)], 1)
        separator = model.model.view_seperator.to(squares.dtype).expand(B, 1, -1)
        places = torch.arange(first * (side + 1), end * (side + 1), device=self.device)
        last = torch.full((1,), side * (side + 1), device=self.device)
        return torch.cat([self._with_line_breaks(shown), separator], 1), squares, torch.cat([places, last])

    def _padding_tokens(self) -> Tensor:
        """Vision tokens of a view without a page, `[H, W, D]`, without gradients; renewed every `PADDING_STEPS`."""
        if self._padding is None or self.step - self._padding[0] >= PADDING_STEPS:
            # As many as in a step, and with gradients, for the graphs that training compiled.
            shape = (self.recipe.views_per_batch, self.side_px, self.side_px, 3)
            views = torch.full(shape, PADDING_GREY, dtype=torch.uint8, device=self.device)
            side = self.side_px // self.square_px
            self._padding = self.step, self.model.encode_views(views)[0].detach().unflatten(0, (side, side)).clone()
        return self._padding[1]

    def _draft(self, hidden_BTD: Tensor, fed_BT: Tensor, answer_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of the drafted tokens, and how many are right in a row on average, by teacher forcing."""
        losses = []
        count = torch.zeros((), device=self.device)
        right_BT = torch.ones_like(answer_BT, dtype=torch.bool)
        embedded_BTD = self.model.model.embed_tokens(fed_BT)
        for ahead in range(1, DRAFTS + 1):
            # Place i has seen the tokens up to i + ahead - 1 and drafts the one after them.
            hidden_BTD = self.draft(hidden_BTD[:, :-1], embedded_BTD[:, ahead - 1 : -1])
            logits_BTV, target_BT = self.model.lm_head(hidden_BTD).float(), answer_BT[:, ahead:]
            losses.append(F.cross_entropy(logits_BTV.flatten(0, 1), target_BT.flatten(), ignore_index=-100))
            right_BT = right_BT[:, :-1] & (logits_BTV.argmax(-1) == target_BT)
            count = count + right_BT.sum() / (target_BT >= 0).sum().clamp(min=1)
        return torch.stack(losses).nan_to_num().mean(), count

    def _answer_logits(
        self, page_BPD: Tensor, places_P: Tensor, prompt_K: Tensor, answer_BT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, hidden states and router loss; `places_P` rise and end with that of the separator, the last token."""
        B = len(page_BPD)
        embed = self.model.model.embed_tokens
        start = torch.full((B, 1), self.tokenizer.bos_id, device=self.device)
        text = torch.cat([prompt_K.expand(B, -1), answer_BT], 1)
        embeds = torch.cat([embed(start), page_BPD.to(embed.weight.dtype), embed(text)], 1)
        after_L = torch.arange(1, text.shape[1] + 1, device=self.device)
        positions_1L = torch.cat([places_P.new_zeros(1), places_P + 1, places_P[-1] + 1 + after_L])[None]
        # Position i predicts token i + 1: from the prompt's last token on, except for the answer's last.
        kept = answer_BT.shape[1] + 1
        outputs = self.model(inputs_embeds=embeds, position_ids=positions_1L, use_cache=False, logits_to_keep=kept)
        return outputs.logits[:, :-1], outputs.last_hidden_state[:, -kept:-1], outputs.aux_loss

    def train_step(self, batch: Batch, severity: float, factor: float) -> dict[str, Tensor]:
        """One update; returns tensors, so that nothing waits for the device."""
        for optimizer, rates in zip(self.optimizers, self._base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        prompt = self._prompts[self.step % len(self._prompts)]
        recipe = self.recipe
        result = self.loss(batch, severity, prompt, self._generator, 0 if recipe.draft_alone else recipe.token_noise)
        weights = {
            "loss": 1.0,
            "router": recipe.router_loss_weight,
            "spotting": recipe.spotting_loss_weight,
            "draft": recipe.draft_loss_weight,
        }
        if recipe.draft_alone:
            weights = {"draft": 1.0}
        torch.stack([weight * result[name] for name, weight in weights.items()]).sum().backward()
        trained = (self.model, *self._heads.values())
        self.peers.average_gradients([parameter for module in trained for parameter in module.parameters()])
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.peers.is_first:
            torch._foreach_lerp_(
                self._mean, [p.detach() for p in self.model.parameters()], 1 - self.recipe.average_decay
            )
        self.step += 1
        return {name: value.detach() for name, value in {**result, "norm": norm}.items()}

    def validate(self, pages: Sequence[list[Sample]]) -> dict[str, float]:
        """Loss and token accuracy on held-out pages of one bucket each, clean and degraded, the same draws each time.

        Runs the graphs that training compiled (nano has no dropout), so that looking costs no compilation.
        """
        sums: dict[str, list[Tensor]] = defaultdict(list)
        for samples in pages:
            bucket = samples[0].bucket
            assert bucket is not None
            batches = {TIERS[samples[0].tier]: build_batch(samples, self.side_px)}
            if self.recipe.band_share and 0 < bucket[3] < self.side_px:
                top_px = band_top(bucket[3], self.side_px, self.square_px)
                name = f"{TIERS[samples[0].tier]}-band"
                batches[name] = build_batch(samples, self.side_px, top_px, self.square_px)
            for name, batch in batches.items():
                for severity, kind in ((0.0, "clean"), (1.0, "degraded")):
                    generator = torch.Generator(device=self.device).manual_seed(7)
                    result = self.loss(batch, severity, self._prompts[0], generator)
                    for value in ("right", "loss", "spotting", "drafted"):
                        sums[f"{name}_{kind}_{value}"].append(result[value].detach())
        return {name: round(torch.stack(values).mean().item(), 4) for name, values in sums.items()}

    def run(
        self,
        pool: RenderPool,
        stream: BatchStream,
        validation: Callable[[], Sequence[list[Sample]]],
        tiers: Collection[str] = DRAWN_TIERS,
    ) -> None:
        """Train until the budget is spent, or the file `stop` appears in the run's folder.

        Args:
            pool: where pages are drawn.
            stream: batches of them.
            validation: gives the pages that the first process looks at now and then.
            tiers: those that can be drawn; the curriculum's others are left out.
        """
        recipe = self.recipe
        began, budget_s = time.monotonic(), recipe.budget_s
        last_log = last_save = began
        pages, recent = 0, []
        self.model.train()
        for batch in stream:
            passed = (time.monotonic() - began) / budget_s
            share = max(recipe.begin + (1 - recipe.begin) * passed, self.step / recipe.max_steps)
            stopping = self.peers.agree(float(share >= 1 or (self.paths.out / "stop").exists())) > 0
            share = min(self.peers.agree(share), 1.0)
            stage = stage_at(recipe.start + (1 - recipe.start) * share)
            if self.step % 20 == 0:
                weights = {tier: weight for tier, weight in stage.tiers.items() if tier in tiers}
                stream.want(weights)
                pool.want(_pages_drawn(weights), stage.max_characters)
            if stopping:
                break
            severity = stage.severity * (self._random.random() if self._random.random() < recipe.mild_share else 1.0)
            recent.append(self.train_step(batch, severity, learning_rate_factor(self.step, share, recipe)))
            pages += len(batch.ink_BHW)
            if self.step == 1:  # compilation lies behind: the schedule starts here and shares what time is left
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                budget_s, began = budget_s - (time.monotonic() - began), time.monotonic()
                last_log = last_save = began
                pool.renew()
            now = time.monotonic()
            if not self.peers.is_first:
                recent = []
                continue
            if now - last_log > 10:
                self._report(recent, pool, pages, now - began, now - last_log, share)
                recent, last_log = [], now
            if now - last_save > 90:
                self._write({"validation": self.validate(validation()), "share": round(share, 4)})
                self.save(pages, now - began, share)
                last_save = time.monotonic()
        if self.peers.is_first:
            self._write({"validation": self.validate(validation()), "share": round(share, 4)})
            self.save(pages, time.monotonic() - began, share)

    def save(self, pages: int, seconds: float, share: float) -> None:
        """Write shards of the last weights and of their mean, with the history of all runs so far.

        Args:
            pages: read in this run.
            seconds: this run has trained.
            share: of the schedule that lies behind.
        """
        run = {
            "steps": self.history.get("steps", 0) + self.step,
            "seconds": round(self.history.get("seconds", 0) + seconds),
            "pages": self.history.get("pages", 0) + pages,
            "share": share,
            "recipe": asdict(self.recipe),
            "config": self.model.config.to_dict(),
        }
        run = json.loads(json.dumps(run, default=str))
        save_shards(self.model, self.paths.out / "shards", run, self._heads)
        last = [parameter.detach().clone() for parameter in self.model.parameters()]
        self._put(self._mean)
        save_shards(self.model, self.paths.out / "shards-mean", run)
        self._put(last)

    def _put(self, weights: list[Tensor]) -> None:
        with torch.no_grad():
            torch._foreach_copy_(list(self.model.parameters()), weights)

    def _report(
        self, recent: list[dict[str, Tensor]], pool: RenderPool, pages: int, seconds: float, span: float, share: float
    ) -> None:
        means = {name: round(torch.stack([r[name] for r in recent]).float().mean().item(), 4) for name in recent[0]}
        memory = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
        self._write(
            {
                "step": self.step,
                "share": round(share, 4),
                "seconds": round(seconds),
                **means,
                "pages": pages,
                "steps_per_s": round(len(recent) / span, 2),
                "drawn": pool.drawn,
                "dropped": pool.dropped,
                "held": pool.counts(),
                "memory_gib": round(memory / 2**30, 1),
            }
        )

    def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record)
        with (self.paths.out / "log.jsonl").open("a") as log:
            log.write(line + "\n")
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def spoil_tokens(answer_BT: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Put tokens from elsewhere in the batch into a share of the places.

    A decoder that is fed nothing but the truth learns to trust it, and after its own first mistake has lost its place.

    Shapes:
        answer_BT: int64, 0 where padded
        returns: the same, changed in at most `share` of the places
    """
    if not share:
        return answer_BT
    chosen = torch.rand(answer_BT.shape, device=answer_BT.device, generator=generator) < share
    source = torch.randint(answer_BT.numel(), answer_BT.shape, device=answer_BT.device, generator=generator)
    other_BT = answer_BT.flatten()[source]
    return torch.where(chosen & (other_BT > 0), other_BT, answer_BT)


_PAGES_PER_BATCH = {
    "line": 3.25, "few": 2.5, "block": 1.2, "half": 1 / 3, "page": 1 / 6, "crop": 1 / 4, "sheet": 1 / 9,
    "mosaic": 1 / 7, "court": 1 / 8, "invoice": 1 / 6, "table": 1 / 6, "blank": 1 / 3, "pdf-page": 1 / 8,
    "pdf-cut": 1 / 3, "lines": 2.0,
}  # fmt: skip
"""Pages that a batch of a tier holds, against one of whole single views; some of those of low ones are bands."""


def _pages_drawn(tier_weights: dict[str, float] | Any) -> dict[str, float]:
    return {tier: weight * _PAGES_PER_BATCH[tier] for tier, weight in tier_weights.items()}


def draw_validation(
    make_draw: Callable[[int], DrawFunction], seed: int, views_per_batch: int, tiers: Sequence[str]
) -> list[list[Sample]]:
    """Pages of one bucket per tier from held-out fonts and texts, as many as half a batch holds."""
    draw, batches = make_draw(seed), []
    for tier in tiers:
        buckets: dict[Bucket, list[Sample]] = defaultdict(list)
        while True:
            drawing = draw(tier, 90)
            sample = drawing.packed(tier)
            if sample.bucket is None:
                continue
            samples = buckets[sample.bucket]
            samples.append(sample)
            if len(samples) >= max(1, views_per_batch // (drawing.columns * drawing.rows + 1) // 2):
                batches.append(samples)
                break
    return batches


def tokens_in_view(model: DeepseekOcrForConditionalGeneration) -> int:
    """Vision tokens of one tile."""
    geometry = model.config.geometry_config()
    return (geometry.tile_px // geometry.patch_px // geometry.downsample) ** 2
