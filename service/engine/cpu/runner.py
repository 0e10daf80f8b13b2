"""The runner in plain torch: encodes views, prefills prompts, decodes one token for every row.

Owns the model, the cache's tensors and, for each slot, what the sampler keeps on a GPU: newest token, loop detector,
guard of the second attempt, sampling parameters. Where a head drafts tokens, a step checks them together with the
newest. For CPUs, and for decoders that the GPU path does not know. Every call finishes its work before it returns, with
one copy from the device. Used by the engine's single thread.

Shape letters: B rows, L tokens, V views, N tokens of a view, D decoder width, H and W pixels, C colours.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from service.engine.answer_ring import AnswerRing
from service.engine.cpu.bands import BandAssembler, BandFeatures, BandPixels, PartialFeatures, band_of, rows_of
from service.engine.cpu.canvas_reader import CanvasReader, canvas_reader
from service.engine.cpu.compiled_decoder import CompiledDecoder
from service.engine.cpu.kv_cache import DecodeWindow, PrefillWindow, SlotCache
from service.engine.cpu.loaded_library import NoLibraryError
from service.engine.cpu.packed_decoder import PackedDecoder, can_pack
from service.engine.cpu.packed_linear import with_packed_layers
from service.engine.cpu.rounded import RoundedReader, has_tiles, rounded_reader
from service.engine.lora.bank import AdapterBank, PackedAdapter, pack_adapter
from service.engine.lora.files import AdapterFiles
from service.engine.lora.hooks import adapted
from service.engine.lora.registry import NO_ADAPTER
from service.engine.protocol import SamplingParams
from service.engine.runner import Alternatives, NewRow, StepOutput, View
from service.engine.sampling import Draw, draw_scores, most_probable
from shared.contract.answer import TokenJudge, TokenStatus
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.draft_head import DraftHead
from shared.deepseek_ocr.forms import PageImage, PageViews, PreparedPage
from shared.deepseek_ocr.geometry import GeometryConfig, ViewPlan
from shared.deepseek_ocr.images import prepare_views
from shared.deepseek_ocr.pages import assemble_pages
from shared.deepseek_ocr.protocol import OcrModel
from shared.deepseek_ocr.registry import kind_of


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token."""

    token: int
    log_probability: float
    """Natural logarithm, before bans and at temperature 1; not finite when the logits were not numbers."""
    alternatives: Alternatives | None = None
    """None unless they are asked for."""

    @property
    def is_valid(self) -> bool:
        """Whether the model gave numbers to choose by."""
        return math.isfinite(self.log_probability)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one row reads before its first token."""

    ids: Sequence[int]
    features_LD: Tensor
    """One vector for each image token among the ids."""
    positions: Sequence[int] | None = None
    """Of the ids, which rise; None: they have no gaps."""
    adapter: int = NO_ADAPTER
    draw: Draw | None = None
    """How the first token is chosen; None: greedily."""
    num_alternatives: int = 0

    @property
    def is_plain_canvas(self) -> bool:
        """Whether it is of a canvas, read by the base alone."""
        return self.positions is not None and self.adapter == NO_ADAPTER


@dataclass(slots=True)
class _SlotState:
    """A slot's answer."""

    num_prompt_tokens: int
    params: SamplingParams
    judge: TokenJudge
    adapter: int = NO_ADAPTER
    is_rounded: bool = False
    """Whether its keys and values are bfloat16."""
    newest_state_H: Tensor | None = None
    """What the language head read when it chose the newest token, to draft from; None where that is not known."""

    def draw(self) -> Draw | None:
        """How the next token is drawn; None: greedily."""
        params = self.params
        return Draw(params.temperature, params.seed or 0, len(self.judge.tokens)) if params.temperature > 0 else None


@dataclass(frozen=True, slots=True)
class _Lane:
    """Answers that are computed together: all exact ones, or all that are rounded.

    Invariant: row i of the cache belongs to slot `slots[i]`. Rows have no holes: the last one moves into the place of
    one that leaves.
    """

    cache: SlotCache
    slots: list[int] = field(default_factory=list)


class CpuRunner:
    """Implements `runner.Runner`.

    Invariant: `_states` has exactly the slots of both lanes.

    Args:
        model: In evaluation mode, on its device.
        max_rows: Rows at most, one for each slot.
        max_tokens: Tokens of one row at most.
        eos_id: The token that ends an answer.
        rule: What counts as a loop.
        kv_tokens: What all rows hold together; None: `max_rows` of the longest.
        growth_tokens: Steps in which the cache grows.
        bank: Adapters, made without `splits_shared`; None: there are none.
        token_px: Side of what a vision token of the model shows, where the padding of canvases is left out (`bands`);
            None: all views are read whole.
        rounds_canvases: Whether canvases without their padding are encoded and their prompts read in bfloat16, where
            the processor is made for that, or else by compiled code, which rounds less. Where steps are compiled, their
            keys and values are bfloat16 on any processor.
        draft_head: Drafts tokens for those that are decoded by the compiled step; None: there is none.
    """

    depth = 0
    prepares_views = False
    block_tokens = 1

    def __init__(
        self,
        model: OcrModel,
        *,
        max_rows: int,
        max_tokens: int,
        eos_id: int,
        rule: LoopRule,
        kv_tokens: int | None = None,
        growth_tokens: int = 256,
        bank: AdapterBank | None = None,
        token_px: int | None = None,
        rounds_canvases: bool = False,
        draft_head: DraftHead | None = None,
    ) -> None:
        text = model.config.text_config
        self._packed = PackedDecoder(model, max_tokens + 1) if can_pack(model) else None
        self._rounded: RoundedReader | None = None
        self._compiled: CanvasReader | None = None
        self._compiled_steps: CompiledDecoder | None = None
        self._steps = self._canvases = "torch"
        if rounds_canvases and token_px:
            self._prepare_canvases(model, max_tokens + 1, draft_head)
        if self._packed and isinstance(model, nn.Module):
            model = with_packed_layers(model)
        self._model = model
        # Adapters are hooks on these layers.
        self._decode_embedded = model.decoder.decode if kind_of(model).has_fast_decoder else model.decode
        self._bank = bank
        self._device = model.lm_head.weight.device
        self._eos_id = eos_id
        self._rule = rule
        self._kv_tokens = kv_tokens or max_rows * max_tokens
        self._ring = AnswerRing.of(model, rule)
        self._states: dict[int, _SlotState] = {}
        self._pending: deque[StepOutput] = deque()
        # One token more than a row holds: a step makes room before it knows that the page has ended.
        new_cache = partial(
            SlotCache,
            num_layers=text.num_hidden_layers,
            num_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            max_rows=max_rows,
            max_tokens=max_tokens + 1,
            ring=self._ring,
            growth_tokens=growth_tokens,
            device=self._device,
        )
        self._exact = _Lane(new_cache(dtype=model.lm_head.weight.dtype))
        rounds = self._compiled_steps or self._rounded
        self._rounded_lane = _Lane(new_cache(dtype=torch.bfloat16)) if rounds else None
        self._token_px = token_px
        self._bands = BandAssembler(model, token_px) if token_px else None

    @property
    def kv_tokens(self) -> int:
        """Key and value tokens that all slots hold together."""
        return self._kv_tokens

    @property
    def kept_answer_tokens(self) -> int | None:
        """Newest answer tokens whose keys a slot keeps; None: all."""
        return self._ring.cells if self._ring else None

    @property
    def skips_padding(self) -> bool:
        """Whether padding is left out."""
        return self._bands is not None

    @property
    def steps(self) -> str:
        """How canvases are decoded: `compiled`, with drafts or without, or `torch` and why."""
        return self._steps

    @property
    def canvases(self) -> str:
        """How canvases are encoded and their prompts read: `bfloat16`, `compiled`, or `torch` and why."""
        return self._canvases

    def warm_up(self) -> None:
        """Nothing to prepare."""

    def prepare(self, page: PreparedPage, geometry: GeometryConfig) -> Sequence[NDArray[np.uint8] | BandPixels]:
        """All views of a page on the host, or the band of its only one; those of an image are made by Pillow."""
        if isinstance(page, PageImage):
            page = PageViews(page.plan, *prepare_views(Image.fromarray(page.image_HWC), page.plan, geometry))
        if self._token_px and not len(page.tiles_THWC):
            band = band_of(page.global_view_HWC, self._token_px, cuts_windows=self._compiled is not None)
            if band:
                return [BandPixels(band, rows_of(page.global_view_HWC, band, self._token_px))]
        return [page.global_view_HWC, *page.tiles_THWC]

    @torch.inference_mode()
    def encode(self, views: Sequence[View | BandPixels]) -> list[Tensor | BandFeatures]:
        """Encode views, those of one size together, and bands, those of one place together.

        Args:
            views: `[px, px, 3]` each, and bands.

        Returns:
            `[N, D]` for each view, in their order.
        """
        tokens: dict[int, Tensor | BandFeatures] = self._encode_compiled(views)
        rest = [index for index in range(len(views)) if index not in tokens]
        for places in _group_equal([_place_of(views[index]) for index in rest]):
            indices = [rest[place] for place in places]
            alike = [views[index] for index in indices]
            bands = [view.band for view in alike if isinstance(view, BandPixels)]
            pixels = [view.pixels_HWC if isinstance(view, BandPixels) else np.asarray(view) for view in alike]
            stacked_VHWC = torch.from_numpy(np.stack(pixels)).to(self._device)
            if bands:
                model: Any = self._rounded.encoder if self._rounded else self._model
                encoded_VND = model.encode_bands(stacked_VHWC, bands[0].first_row).float()
                features = [BandFeatures(band, tokens_ND) for band, tokens_ND in zip(bands, encoded_VND, strict=True)]
                tokens.update(zip(indices, features, strict=True))
            else:
                tokens.update(zip(indices, self._model.encode_views(stacked_VHWC), strict=True))
        return [tokens[index] for index in range(len(views))]

    def _encode_compiled(self, views: Sequence[View | BandPixels]) -> dict[int, Tensor | BandFeatures]:
        """Those that the library encodes, by their indices."""
        bands = {index: view for index, view in enumerate(views) if self._compiled and isinstance(view, BandPixels)}
        if not self._compiled or not bands:
            return {}
        encoded = self._compiled.encoder.encode(list(bands.values()))
        return {
            index: BandFeatures(pixels.band, tokens_ND)
            for (index, pixels), tokens_ND in zip(bands.items(), encoded, strict=True)
        }

    @torch.inference_mode()
    def assemble(self, pages: Sequence[tuple[ViewPlan, Sequence[Any]]]) -> Tensor | PartialFeatures:
        """See `runner.Runner`."""
        for _, (first, *_) in pages:
            if isinstance(first, BandFeatures):
                assert len(pages) == 1
                assert self._bands is not None
                return self._bands.assemble(first)
        return assemble_pages(self._model, pages)

    def open(self, rows: Sequence[NewRow]) -> None:
        """Read prompts into free slots and choose their first tokens."""
        prompts = []
        for row in rows:
            assert row.slot not in self._states
            judge = TokenJudge(self._eos_id, row.params.max_new_tokens, self._rule)
            ids, positions, features = row.prompt_ids, None, row.features_LD
            if isinstance(features, PartialFeatures):
                positions = features.positions(ids, self._model.config.image_token_id)
                ids, features = [ids[position] for position in positions], features.features_KD
            state = _SlotState(len(ids), row.params, judge, row.adapter)
            self._states[row.slot] = state
            prompt = Prompt(ids, features, positions, row.adapter, state.draw(), row.params.num_alternatives)
            state.is_rounded = self._rounded_lane is not None and prompt.is_plain_canvas
            self._lane_of(state).slots.append(row.slot)
            prompts.append(prompt)
        choices = self.prefill(prompts)
        self._report([row.slot for row in rows], [[choice] for choice in choices])

    def launch(self, slots: Sequence[int]) -> None:
        """Choose tokens for these slots, which must be all open slots."""
        assert len(slots) == len(self._states)
        choices_of: dict[int, list[Choice]] = {}
        num_drafted = 0
        for lane in self._lanes():
            decoder = self._compiled_steps
            if decoder and decoder.can_draft and lane is self._rounded_lane:
                choices, num_drafted = self._launch_drafting(lane, decoder)
            else:
                choices = [[choice] for choice in self._launch(lane)]
            choices_of.update(zip(lane.slots, choices, strict=True))
        self._report(slots, [choices_of[slot] for slot in slots], num_drafted)

    def _launch(self, lane: _Lane) -> list[Choice]:
        rows = [self._states[slot] for slot in lane.slots]
        banned = {index: ids for index, row in enumerate(rows) if (ids := row.judge.banned())}
        draws = {index: draw for index, row in enumerate(rows) if (draw := row.draw())}
        newest, adapters = [row.judge.tokens[-1] for row in rows], [row.adapter for row in rows]
        wanted = {index: row.params.num_alternatives for index, row in enumerate(rows) if row.params.num_alternatives}
        if lane is self._rounded_lane:
            return self._decode_rounded(newest, banned, draws, wanted)
        return self.decode(newest, banned, adapters, draws, wanted)

    @torch.inference_mode()
    def _launch_drafting(self, lane: _Lane, decoder: CompiledDecoder) -> tuple[list[list[Choice]], int]:
        """Feed each row its newest token and drafts; choose the tokens that would be chosen one by one.

        Args:
            lane: Of the canvases.
            decoder: One that can draft.

        Returns:
            One choice or more for each row, and the number of drafts.
        """
        rows = [self._states[slot] for slot in lane.slots]
        tokens = [[row.judge.tokens[-1], *drafts] for row, drafts in zip(rows, _draft(rows, decoder), strict=True)]
        firsts = list(accumulate((len(each) for each in tokens), initial=0))
        lengths = [lane.cache.length(index) for index in range(len(rows))]
        states_TH, logits_TV = decoder.step_several(tokens, lane.cache.open_several([len(each) for each in tokens]))
        # Where something is banned or drawn, nothing was drafted.
        banned = {first: ids for row, first in zip(rows, firsts, strict=False) if (ids := row.judge.banned())}
        draws = {first: draw for row, first in zip(rows, firsts, strict=False) if (draw := row.draw())}
        wanted = {
            first + index: row.params.num_alternatives
            for row, first, each in zip(rows, firsts, tokens, strict=False)
            if row.params.num_alternatives
            for index in range(len(each))
        }
        choices = self._choose(logits_TV, banned, draws, wanted)
        found = []
        for index, (row, each) in enumerate(zip(rows, tokens, strict=True)):
            first = firsts[index]
            chosen = _confirmed(choices[first : firsts[index + 1]], each[1:])
            row.newest_state_H = states_TH[first + len(chosen) - 1]
            lane.cache.truncate(index, lengths[index] + len(chosen))
            found.append(chosen)
        return found, len(choices) - len(rows)

    def collect(self) -> StepOutput | None:
        """Take the oldest output."""
        return self._pending.popleft() if self._pending else None

    def rewind(self, slot: int, *, kept: int, newest_token: int, forbidden: int | None) -> None:
        """See `runner.Runner`."""
        state = self._states[slot]
        state.judge.rewind(kept, forbidden)
        state.newest_state_H = None
        assert state.judge.tokens[-1] == newest_token
        # The newest token kept is fed again, so its keys go as well.
        lane = self._lane_of(state)
        lane.cache.truncate(lane.slots.index(slot), state.num_prompt_tokens + kept - 1)

    @torch.inference_mode()
    def close(self, slot: int) -> None:
        """Free a slot; the last row moves into the place of its row."""
        lane = self._lane_of(self._states.pop(slot))
        row = lane.slots.index(slot)
        lane.cache.close_row(row)
        lane.slots[row] = lane.slots[-1]
        lane.slots.pop()

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Prompt]) -> list[Choice]:
        """Open a row for each prompt, in order, and choose its first token; for `open`, which knows the slots.

        Prompts that are equally long run as one batch if they follow one another, so nothing is ever padded.
        """
        choices: list[Choice] = []
        for indices in _runs_of_equal([(len(prompt.ids), prompt.is_plain_canvas) for prompt in prompts]):
            batch = [prompts[index] for index in indices]
            ids_BL = torch.tensor([list(prompt.ids) for prompt in batch], device=self._device)
            features = [prompt.features_LD for prompt in batch if len(prompt.features_LD)]
            embeds_BLD = self._model.embed_inputs(ids_BL, features)
            positions = [prompt.positions or range(len(prompt.ids)) for prompt in batch]
            positions_BL = torch.tensor([list(each) for each in positions], device=self._device)
            skipped = [each[-1] + 1 - len(each) for each in positions]
            is_canvas = batch[0].is_plain_canvas
            lane = self._rounded_lane if self._rounded_lane and is_canvas else self._exact
            window = lane.cache.open_rows(len(batch), ids_BL.shape[1], skipped)
            if self._compiled and is_canvas:
                logits_BK = self._compiled.prompts.read(embeds_BLD, positions_BL, window)
            elif self._rounded and is_canvas:
                logits_BK = self._rounded.decoder.read(embeds_BLD, positions_BL, window)
            else:
                with self._adapted([prompt.adapter for prompt in batch], ids_BL.shape[1]):
                    logits_BK = self._logits(embeds_BLD, positions_BL, None, window)
            draws = {row: each.draw for row, each in enumerate(batch) if each.draw}
            wanted = {row: each.num_alternatives for row, each in enumerate(batch) if each.num_alternatives}
            choices += self._choose(logits_BK, {}, draws, wanted)
        return choices

    @torch.inference_mode()
    def decode(
        self,
        tokens: Sequence[int],
        banned: Mapping[int, Sequence[int]],
        adapters: Sequence[int] = (),
        draws: Mapping[int, Draw] = MappingProxyType({}),
        wanted: Mapping[int, int] = MappingProxyType({}),
    ) -> list[Choice]:
        """Feed each exact row its newest token and choose the next; for `launch`, which knows the slots.

        Args:
            tokens: One for each row.
            banned: Ids that a row may not choose; rows without any are left out.
            adapters: One for each row, -1 the base alone; empty: all the base alone.
            draws: How rows choose that are not greedy.
            wanted: How many alternatives rows report that are asked for some.

        Returns:
            One choice for each row.
        """
        window = self._exact.cache.open_step()
        if self._packed:
            return self._choose(self._packed.logits(tokens, window, self._bank, adapters), banned, draws, wanted)
        embeds_B1D = self._model.embed_inputs(torch.tensor(tokens, device=self._device).unsqueeze(1), [])
        with self._adapted(adapters, 1):
            logits_BK = self._logits(embeds_B1D, window.position_ids_B1, window.mask_B11S, window)
        return self._choose(logits_BK, banned, draws, wanted)

    @torch.inference_mode()
    def _decode_rounded(
        self,
        tokens: Sequence[int],
        banned: Mapping[int, Sequence[int]],
        draws: Mapping[int, Draw],
        wanted: Mapping[int, int],
    ) -> list[Choice]:
        """As `decode`, for the rounded rows."""
        assert self._rounded_lane
        decoder = self._compiled_steps or (self._rounded.decoder if self._rounded else None)
        assert decoder
        logits_BK = decoder.step(tokens, self._rounded_lane.cache.open_step())
        return self._choose(logits_BK, banned, draws, wanted)

    def pack_adapter(self, files: AdapterFiles) -> PackedAdapter:
        """See `runner.Runner`."""
        return pack_adapter(self._bank, files)

    def load_adapter(self, adapter: int, packed: PackedAdapter) -> None:
        """See `runner.Runner`."""
        assert self._bank is not None
        assert all(state.adapter != adapter for state in self._states.values())
        self._bank.load(adapter, packed)

    def device_memory_bytes(self) -> int:
        """Memory that tensors hold on the device; 0 on a CPU, whose memory the process shares with all else."""
        return torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else 0

    def check_integrity(self) -> None:
        """Assert the invariants; for tests."""
        for lane in self._lanes():
            assert len(lane.slots) == lane.cache.num_rows
        assert sorted(slot for lane in self._lanes() for slot in lane.slots) == sorted(self._states)

    def _prepare_canvases(self, model: OcrModel, max_tokens: int, draft_head: DraftHead | None) -> None:
        """Copy the model in the forms that this processor encodes, reads and decodes canvases in."""
        try:
            self._compiled_steps = CompiledDecoder(model, max_tokens, draft_head)
            self._steps = self._compiled_steps.steps
        except NoLibraryError as error:
            self._steps = f"torch ({error})"
        if has_tiles():
            self._rounded = rounded_reader(model, max_tokens) if self._packed else None
            self._canvases = "bfloat16" if self._rounded else "torch"
            return
        try:
            self._compiled = canvas_reader(model, max_tokens)
            self._canvases = "compiled"
        except NoLibraryError as error:
            self._canvases = f"torch ({error})"

    def _lanes(self) -> list[_Lane]:
        """Those with answers."""
        return [lane for lane in (self._exact, self._rounded_lane) if lane and lane.slots]

    def _lane_of(self, state: _SlotState) -> _Lane:
        return self._rounded_lane if self._rounded_lane and state.is_rounded else self._exact

    def _report(self, slots: Sequence[int], choices: Sequence[Sequence[Choice]], num_drafted: int = 0) -> None:
        """Judge the tokens chosen for each slot, up to one that ends its answer or needs the engine's decision."""
        output = StepOutput(num_drafted=num_drafted)
        for slot, chosen in zip(slots, choices, strict=True):
            for count, choice in enumerate(chosen, start=1):
                status, argument = (
                    self._states[slot].judge.push(choice.token) if choice.is_valid else (TokenStatus.FAULT, 0)
                )
                output.tokens.append(choice.token)
                output.log_probabilities.append(choice.log_probability)
                output.statuses.append(status)
                output.arguments.append(argument)
                if choice.alternatives is not None:
                    output.alternatives[len(output.tokens) - 1] = choice.alternatives
                if status != TokenStatus.RUN or count == len(chosen):
                    output.counts.append(count)
                    break
        self._pending.append(output)

    def _adapted(self, adapters: Sequence[int], tokens: int) -> contextlib.AbstractContextManager[None]:
        """The model with its rows' adapters, or just as it is."""
        if max(adapters, default=NO_ADAPTER) < 0:
            return contextlib.nullcontext()
        assert self._bank is not None
        slots_T = torch.tensor(adapters, dtype=torch.int32, device=self._device).repeat_interleave(tokens)
        return adapted(self._model.decoder, self._bank, slots_T)

    def _logits(
        self, embeds_BLD: Tensor, positions_BL: Tensor, mask: Tensor | None, cache: PrefillWindow | DecodeWindow
    ) -> Tensor:
        """Logits `[B, vocabulary]` of the last token, float32."""
        # Not through `forward`, which would build its masks again in each step.
        hidden_BLD, _ = self._decode_embedded(embeds_BLD, positions_BL, mask, cache)
        return self._model.lm_head(hidden_BLD[:, -1]).float()

    def _choose(
        self,
        logits_BK: Tensor,
        banned: Mapping[int, Sequence[int]],
        draws: Mapping[int, Draw],
        wanted: Mapping[int, int] = MappingProxyType({}),
    ) -> list[Choice]:
        # Before the ban, so that a token chosen only because better ones are banned has its true, low probability.
        logs_BK = logits_BK.log_softmax(dim=-1)
        alternatives = self._alternatives(logits_BK, wanted)
        for row, ids in banned.items():
            logits_BK[row, torch.tensor(ids, device=self._device)] = float("-inf")
        if draws:
            rows = torch.tensor(list(draws), device=self._device)
            logits_BK[rows] = self._drawn(logits_BK[rows], list(draws.values()))
        token_B1 = logits_BK.argmax(dim=-1, keepdim=True)
        # Token ids are exact in float64, so that both come in one copy.
        pairs = torch.cat((token_B1.double(), logs_BK.gather(1, token_B1).double()), dim=1).tolist()
        return [
            Choice(int(token), log_probability, alternatives.get(row))
            for row, (token, log_probability) in enumerate(pairs)
        ]

    def _alternatives(self, logits_BK: Tensor, wanted: Mapping[int, int]) -> dict[int, Alternatives]:
        if not wanted:
            return {}
        rows = torch.tensor(list(wanted), device=self._device)
        ids, logs = (each.tolist() for each in most_probable(logits_BK[rows], max(wanted.values())))
        return {
            row: list(zip(ids[index][:count], logs[index][:count], strict=True))
            for index, (row, count) in enumerate(wanted.items())
        }

    def _drawn(self, logits_BK: Tensor, draws: Sequence[Draw]) -> Tensor:
        """Scores of rows that draw."""
        temperature_B1 = torch.tensor([[draw.temperature] for draw in draws], device=self._device)
        numbers_B2 = torch.tensor([[draw.seed, draw.count] for draw in draws], device=self._device)
        return draw_scores(logits_BK, temperature_B1, numbers_B2[:, :1], numbers_B2[:, 1:])


def _draft(rows: Sequence[_SlotState], decoder: CompiledDecoder) -> list[list[int]]:
    """Drafts for each row, for some none: a step chooses one token more than it is fed drafts."""
    most = decoder.drafts_for(len(rows))
    counts = [
        0 if row.newest_state_H is None or row.judge.can_ban or row.draw() else min(most, row.judge.num_left - 1)
        for row in rows
    ]
    drafting = [row for row, count in zip(rows, counts, strict=True) if count]
    if not drafting:
        return [[] for _ in rows]
    states_BH = torch.stack([row.newest_state_H for row in drafting if row.newest_state_H is not None])
    drafted = iter(decoder.draft(states_BH, [row.judge.tokens[-1] for row in drafting], max(counts)))
    return [next(drafted)[:count] if count else [] for count in counts]


def _confirmed(choices: Sequence[Choice], drafts: Sequence[int]) -> list[Choice]:
    """The choices that would have been made one by one: each draft was fed before the next, so it has to be right."""
    for index, draft in enumerate(drafts):
        if not choices[index].is_valid or choices[index].token != draft:
            return list(choices[: index + 1])
    return list(choices)


def _place_of(view: View | BandPixels) -> tuple[int, int]:
    """What must be equal for views to be encoded together: pixels down, and a band's first row."""
    if isinstance(view, BandPixels):
        return view.pixels_HWC.shape[0], view.band.first_row
    return view.shape[0], 0


def _group_equal(sizes: Sequence[Hashable]) -> Iterable[list[int]]:
    """Indices of equal sizes, groups in the order of their first member."""
    groups: dict[Hashable, list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    return groups.values()


def _runs_of_equal(sizes: Sequence[Hashable]) -> list[list[int]]:
    """Indices of neighbours of equal size."""
    runs: list[list[int]] = []
    for index, size in enumerate(sizes):
        if runs and sizes[runs[-1][-1]] == size:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs
