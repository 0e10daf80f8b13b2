"""Reads a page by its lines: canvases of them are sequences of their own, and their texts go back into reading order.

An answer whose lines cannot be told apart is read again in halves, down to one line, so a page neither drifts nor loops
for long. Knows the engine by a function alone, and of the page's pixels nothing more than its strips.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from service.engine.protocol import SequenceResult, SequenceTimings
from service.errors import DeepSynthError
from shared.contract.answer import FinishReason
from shared.contract.confidence import TokenScores, joined
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import GeometryConfig
from shared.deepseek_ocr.grounding import Region
from shared.deepseek_ocr.line_views import view_of
from shared.deepseek_ocr.read_strips import ReadStrip, is_worth_another_look, surer, unsure_rows
from shared.images.canvases import EM_PX, LARGE_EM_PX, SIDE_PX, Canvas, Strip, pack, pack_evenly
from shared.images.strip_text import (
    LEAST_CONFIDENCE,
    PROBED_CANVASES,
    PageText,
    Span,
    first_line,
    is_texture,
    lines_of,
    most_tokens,
    shows_text,
)

_log = logging.getLogger(__name__)

LABEL = "text"
"""Of a line's box, as the public model calls running text."""

Read = Callable[[PageViews, int], Awaitable[SequenceResult]]
"""Reads a canvas with so many tokens at most."""
Enlarge = Callable[[], Awaitable[Sequence[Strip]]]
"""Gives a page's strips with print of `LARGE_EM_PX`."""


@dataclass(frozen=True, slots=True)
class LinesResult:
    """A page read by its lines."""

    result: SequenceResult
    """As if the page had been one sequence; stages of canvases overlap, so its times are those of the longest."""
    regions: tuple[Region, ...]
    """A box for each line of the text."""
    busy_s: float
    """Seconds of all canvases together."""


async def read_lines(
    strips: Sequence[Strip],
    geometry: GeometryConfig,
    max_new_tokens: int | None,
    read: Read,
    on_text: Callable[[str], None] | None = None,
    *,
    enlarge: Enlarge | None = None,
    most_px: int = SIDE_PX,
    least_confidence: float = LEAST_CONFIDENCE,
) -> LinesResult:
    """Read a page's strips.

    Args:
        strips: In reading order; at least one.
        geometry: The checkpoint's.
        max_new_tokens: For the whole page; what is beyond is left out, and the page ends with `length`. None: as many
            as its lines can have.
        read: Called for several canvases at once; what it raises ends all of them and comes in a group, except for a
            `DeepSynthError` once the page was read and is read once more.
        on_text: Called with each piece of the text, in order.
        enlarge: Gives the page's strips with larger print, none if that fails. If the first canvases were not read
            surely, rows of canvases that were not are read once more from them, and the surer reading of each is kept.
        most_px: Height of a canvas at most. Many low ones have short answers, which are written at once.
        least_confidence: Of answers that are on the page. If most of the first canvases have less, the page shows no
            text, and no more of it is read.

    Returns:
        The page's text and boxes.
    """
    reading = _LinesReading(strips, geometry, max_new_tokens, read, on_text, may_look_again=enlarge is not None)
    first = 0
    canvases = _packed(strips, most_px, EM_PX)
    reading.probe = _Probe(min(PROBED_CANVASES, len(canvases)), least_confidence)
    async with asyncio.TaskGroup() as group:
        for number, canvas in enumerate(canvases):
            task = group.create_task(reading.read_canvas(first, canvas.strips, number))
            if number >= PROBED_CANVASES:
                reading.probe.others.append(task)
            first += len(canvas.strips)
    if enlarge is not None and reading.probe.is_unsure:
        await reading.look_again(await enlarge(), most_px)
    return reading.result()


def _packed(strips: Sequence[Strip], most_px: int, em_px: float) -> list[Canvas]:
    return pack_evenly(strips, most_px, em_px) if most_px < SIDE_PX else pack(strips, em_px)


class _Probe:
    """Whether the first canvases of a page show text."""

    def __init__(self, num_canvases: int, least_confidence: float) -> None:
        self.others: list[asyncio.Task[None]] = []
        """Read the canvases after these."""
        self.is_texture = False
        self.is_unsure = False
        """Whether the page is worth another look."""
        self.end = 0
        """Of their strips."""
        self._num_canvases = num_canvases
        self._least_confidence = least_confidence
        self._found: list[bool | None] = []
        self._answers: list[tuple[str, TokenScores | None]] = []
        self._known = asyncio.Event()

    @property
    def is_known(self) -> bool:
        """Whether all of the canvases were read."""
        return self._known.is_set()

    async def shows_texture(self, result: SequenceResult, *, has_ended: bool) -> bool:
        """Take note of a canvas; one whose answer has no end waits for the others before it is given up."""
        self._found.append(
            shows_text(
                result.text,
                _confidence(result.text, result.token_scores, result.confidence),
                has_ended=has_ended,
                least=self._least_confidence,
            )
        )
        self._answers.append((result.text, result.token_scores))
        if len(self._found) == self._num_canvases:
            self.is_texture = is_texture(self._found)
            self.is_unsure = not self.is_texture and is_worth_another_look(self._answers)
            self._known.set()
            for task in self.others if self.is_texture else ():
                task.cancel()
        if has_ended:
            return False
        await self._known.wait()
        return self.is_texture


class _LinesReading:
    def __init__(
        self,
        strips: Sequence[Strip],
        geometry: GeometryConfig,
        max_new_tokens: int | None,
        read: Read,
        on_text: Callable[[str], None] | None = None,
        *,
        em_px: float = EM_PX,
        may_look_again: bool = False,
    ) -> None:
        self._strips = strips
        self._geometry = geometry
        self._max_new_tokens = max_new_tokens
        self._read = read
        self._on_text = on_text
        self._em_px = em_px
        self._may_look_again = may_look_again
        self._read_strips: list[ReadStrip | None] = [None] * len(strips)
        self._results: list[SequenceResult] = []
        self._kept: list[tuple[int, SequenceResult]] = []
        """Results whose lines are the page's, with the number of the first."""
        self._page = PageText()
        self._num_added = 0
        self._num_tokens = 0.0
        self._has_ended = False
        """Whether the page's limit has left something out."""
        self._scores: list[TokenScores | None] = []
        """Of what was added, at its places in the page's text."""
        self._second: _LinesReading | None = None
        self.probe = _Probe(0, 0)

    async def read_canvas(self, first: int, strips: Sequence[Strip], number: int) -> None:
        """Read the strips of a canvas, the first of which has this number; those of a texture have no text."""
        if number < PROBED_CANVASES:
            self.probe.end = first + len(strips)
            await self.read(first, strips, self.probe)
            return
        try:
            await self.read(first, strips)
        except asyncio.CancelledError:
            if not self.probe.is_texture:
                raise

    async def read(self, first: int, strips: Sequence[Strip], probe: _Probe | None = None) -> None:
        """Read the strips of a canvas, or of a part of one; the first of them has this number."""
        count = len(strips)
        most = self._max_new_tokens
        limit = most_tokens(count) if most is None else min(most, most_tokens(count))
        result = await self._read(view_of(pack(strips, self._em_px)[0], self._geometry), limit)
        self._results.append(result)
        has_ended = result.finish_reason is FinishReason.STOP
        is_short = limit == most and result.finish_reason is FinishReason.LENGTH
        spans = lines_of(result.text, count) if has_ended else None
        if probe is not None and await probe.shows_texture(result, has_ended=has_ended or is_short):
            spans = [(0, 0)] * count
        if spans is None and count > 1 and not is_short:
            middle = (count + 1) // 2
            async with asyncio.TaskGroup() as group:
                group.create_task(self.read(first, strips[:middle]))
                group.create_task(self.read(first + middle, strips[middle:]))
            return
        if spans is None:
            spans = _few_lines(result, count, is_short=is_short)
        self._kept.append((first, result))
        last = max((index for index, (start, end) in enumerate(spans, first) if start < end), default=first)
        for index, span in enumerate(spans, first):
            read = _read_strip(self._strips[index], result, span)
            self._read_strips[index] = replace(read, is_cut=is_short and index >= last, canvas=first)
        self._add()

    async def look_again(self, strips: Sequence[Strip], most_px: int) -> None:
        """Read what is unsure once more from strips of larger print, and keep of each row what is surer.

        A fault costs this reading alone, as the page has been read. What the limit leaves out is not read.
        """
        self._may_look_again = False
        first_look = [read for read in self._read_strips if read is not None]
        unsure, shown = unsure_rows(first_look), set[int]()
        num_tokens = 0.0
        for read in first_look:
            num_tokens += read.num_tokens
            if self._is_beyond_limit(read, num_tokens):
                break
            shown.add(read.strip.row)
        rows = shown & unsure
        strips = [strip for strip in strips if strip.row in rows]
        self._second = second = _LinesReading(
            strips, self._geometry, self._max_new_tokens, self._read, em_px=LARGE_EM_PX
        )
        try:
            async with asyncio.TaskGroup() as group:
                first = 0
                for canvas in _packed(strips, most_px, LARGE_EM_PX) if strips else ():
                    group.create_task(second.read(first, canvas.strips))
                    first += len(canvas.strips)
        except* DeepSynthError:
            _log.warning("a page could not be read once more from larger print", exc_info=True)
            # Rows of which a part was read would lose the rest.
            second._read_strips = []
        self._read_strips = [*surer(first_look, [read for read in second._read_strips if read is not None])]
        self._add()

    def _add(self) -> None:
        """Add what is next in reading order to the text; nothing as long as the page may be read once more."""
        if self._may_look_again and (self.probe.is_unsure or not self.probe.is_known):
            return
        before = len(self._page.text)
        while row := self._next_row():
            for read in row:
                self._add_strip(read)
        new = self._page.text[before:]
        if new and self._on_text is not None:
            self._on_text(new)

    def _next_row(self) -> list[ReadStrip]:
        """The strips of the next row; none if one was not read yet, or the page has no more rows."""
        row: list[ReadStrip] = []
        for index in range(self._num_added, len(self._read_strips)):
            if self.probe.is_texture and index >= self.probe.end:
                # Also where it was read by then: a page's text does not depend on what was faster.
                self._read_strips[index] = _read_strip(self._strips[index], self._kept[0][1], (0, 0))
            read = self._read_strips[index]
            strip = self._strips[index] if read is None else read.strip
            if row and strip.row != row[0].strip.row:
                break
            if read is None:
                return []
            row.append(read)
        return row

    def _add_strip(self, read: ReadStrip) -> None:
        self._num_tokens += read.num_tokens
        # What the limit cut is the end of the page, whatever was read after it.
        self._has_ended |= self._is_beyond_limit(read, self._num_tokens)
        text = "" if self._has_ended else read.text
        at = self._page.add(read.strip, text)
        self._scores.append(read.scores and read.scores.within(0, len(text), at))
        self._num_added += 1

    def _is_beyond_limit(self, read: ReadStrip, num_tokens: float) -> bool:
        """Whether the page's limit leaves out a strip with which the page has so many tokens."""
        is_over = self._max_new_tokens is not None and num_tokens > self._max_new_tokens
        return is_over or (read.is_cut and not read.text)

    def result(self) -> LinesResult:
        """After all strips were read."""
        looks = [self._results, *([self._second._results] if self._second and self._second._results else [])]
        results = [result for look in looks for result in look]
        kept = [result for first, result in self._kept if first < self.probe.end or not self.probe.is_texture]
        tokens = sum(result.completion_tokens for result in kept)
        logs = sum(result.completion_tokens * math.log(max(result.confidence, 1e-9)) for result in kept)
        text, scores = self._page.text, self._all_scores()
        page = replace(
            kept[0],
            text=text,
            finish_reason=FinishReason.LENGTH if self._has_ended else FinishReason.STOP,
            confidence=_confidence(text, scores, math.exp(logs / tokens) if tokens else kept[0].confidence),
            min_confidence=min(result.min_confidence for result in kept),
            token_scores=scores,
            vision_tokens=sum(result.vision_tokens for result in results),
            prompt_tokens=sum(result.prompt_tokens for result in results),
            completion_tokens=sum(result.completion_tokens for result in results),
            timings=_timings(looks),
        )
        regions = tuple(Region(LABEL, line.box_px, line.text, start, line.words_px) for start, line in self._page.lines)
        busy_s = sum(each.encode_s + each.prefill_s + each.generate_s for each in (one.timings for one in results))
        return LinesResult(page, regions, busy_s)

    def _all_scores(self) -> TokenScores | None:
        """Scores of the tokens of all lines; None if an answer has none."""
        known = [scores for scores in self._scores if scores is not None]
        return joined(known) if len(known) == len(self._scores) else None


def _read_strip(strip: Strip, result: SequenceResult, span: Span) -> ReadStrip:
    start, end = span
    scores = result.token_scores and result.token_scores.within(start, end)
    num_tokens = result.completion_tokens * (end - start) / max(len(result.text), 1)
    return ReadStrip(strip, result.text[start:end], scores, num_tokens)


def _timings(looks: Sequence[Sequence[SequenceResult]]) -> SequenceTimings:
    """Of all looks, one after the other; those of one look's canvases overlap."""
    stages = (
        [(each.queue_s, each.encode_s, each.prefill_s, each.generate_s) for each in (one.timings for one in results)]
        for results in looks
    )
    return SequenceTimings(*map(sum, zip(*(map(max, zip(*rows, strict=True)) for rows in stages), strict=True)))


def _confidence(text: str, scores: TokenScores | None, otherwise: float) -> float:
    """Of what is printed; a canvas of dirt is mostly line breaks, of which a model is sure."""
    mean = scores.mean_of_print(text) if scores else None
    return otherwise if mean is None else math.exp(mean)


def _few_lines(result: SequenceResult, count: int, *, is_short: bool) -> list[Span]:
    """Lines of an answer to a single strip, or of one that the limit cut: what is left has none."""
    if not is_short:
        return [first_line(result.text) if result.finish_reason is FinishReason.STOP else (0, 0)]
    spans: list[Span] = []
    at = 0
    for line in result.text.split("\n"):
        if line.strip():
            start = at + len(line) - len(line.lstrip())
            spans.append((start, start + len(line.strip())))
        at += len(line) + 1
    return [*spans[:count], *[(0, 0)] * (count - len(spans))]
