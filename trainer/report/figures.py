"""The figures of a report: tiles, tables and pictures of a record and of a run's curves, as HTML."""

from __future__ import annotations

from html import escape

from shared.contract.text import ErrorCount, total
from trainer.evaluation.results import EvaluationResult, ReaderResult
from trainer.evaluation.scores import TierScore
from trainer.evaluation.table import TEST_COLUMNS, page_test_rows, skipped_note
from trainer.report.chart import Interval, Line, curves, intervals
from trainer.report.curves import Curves, thinned
from trainer.report.html import figure, legend, table

_RATES = (
    ("CER", "cer"),
    ("capped", "cer_capped"),
    ("WER", "wer"),
    ("exact", "exact_ratio"),
    ("loops", "unfinished_ratio"),
    ("ROUGE-1", "rouge_1"),
    ("ROUGE-2", "rouge_2"),
    ("ROUGE-L", "rouge_l"),
    ("BLEU", "bleu"),
    ("BERTScore", "bert_score"),
    ("TEDS", "teds"),
    ("TEDS, structure", "teds_structure"),
)
_KINDS = ("first", "second")


def percent(share: float) -> str:
    """A share formatted in percent."""
    return f"{100 * share:.2f} %" if share < 0.1 else f"{100 * share:.1f} %"


def summary_tiles(result: EvaluationResult) -> str:
    """Tiles with the most important figures."""
    tiles = [*_rate_tiles(result), *_test_tiles(result)]
    return '<dl class="tiles">' + "".join(map(_tile, *zip(*tiles, strict=True))) + "</dl>"


def _rate_tiles(result: EvaluationResult) -> list[tuple[str, str, str]]:
    first, base = result.readers[0], result.base
    if not first.tiers:
        return []
    rate = _overall(first)
    tiles = [("Character errors", percent(rate), _tiers_note(first))]
    if base is not None and base is not first:
        before = _overall(base)
        tiles.append(("Base model", percent(before), _tiers_note(base)))
        gone = 1 - rate / before if before else 0.0
        kind, word = ("good", "gone") if gone > 0 else ("bad", "added")
        tiles.append(("Of the base's errors", f'<span class="{kind}">{abs(100 * gone):.0f} % {word}</span>', ""))
    pages = sum(score.pages for score in first.tiers.values())
    exact = sum(score.pages * score.exact_ratio for score in first.tiers.values())
    loops = sum(score.pages * score.unfinished_ratio for score in first.tiers.values())
    tiles.append(("Pages without any error", f"{exact:.0f} of {pages}", f"{loops:.0f} looped or met the limit"))
    return tiles


def _test_tiles(result: EvaluationResult) -> list[tuple[str, str, str]]:
    score = result.readers[0].page_tests
    if score is None:
        return []
    rate = score.overall
    return [("Page tests passed", f"{rate.passed} of {rate.tests}", f"{percent(rate.low)} to {percent(rate.high)}")]


def rates_figure(result: EvaluationResult) -> str:
    """Error rates of the first reader and of the one it is compared with, with their intervals; empty without any."""
    if not result.tiers:
        return ""
    readers = result.readers[: len(_KINDS)]
    rows = [
        Interval(
            f"{tier}, {_short(reader.name)}" if len(readers) > 1 else tier,
            kind, score.cer, score.cer_low, score.cer_high,
        )
        for tier in result.tiers
        for kind, reader in zip(_KINDS, readers, strict=False)
        if (score := reader.tiers.get(tier)) is not None
    ]  # fmt: skip
    picture = intervals("rates", "Character error rates with 95 % intervals", rows, percent, _axis_percent)
    scrolling = f'<div class="wide" tabindex="0" role="region" aria-label="Character error rates">{picture}</div>'
    return figure("Character error rate, with 95 % intervals", scrolling)


def tables(result: EvaluationResult) -> str:
    """Tables of all figures of all readers, and of what the adapter changes; empty without error rates."""
    if not result.tiers:
        return ""
    measured = [
        (name, key) for name, key in _RATES
        if any(getattr(score, key) is not None for reader in result.readers for score in reader.tiers.values())
    ]  # fmt: skip
    rows = [
        [escape(tier), escape(reader.name), str(score.pages), *(_cell(score, key) for _, key in measured)]
        for tier in result.tiers
        for reader in result.readers
        if (score := reader.tiers.get(tier)) is not None
    ]
    columns = ["tier", "reader", "pages", *(name for name, _ in measured)]
    return table("Figures by tier and reader", columns, rows, 2) + _change_table(result)


def page_tests(result: EvaluationResult) -> str:
    """Pass rates of page tests, and every test that failed, with its reason; empty without tests."""
    if result.page_tests is None:
        return ""
    lines = [[escape(cell) for cell in line] for line in page_test_rows(result)]
    parts = ["<h2>Page tests</h2>", table("Pass rates by kind and file", TEST_COLUMNS, lines, 2)]
    note = skipped_note(result)
    if note:
        parts.append(f'<p class="quiet">{escape(note)}</p>')
    for reader in result.readers:
        failures = reader.page_tests.failures if reader.page_tests is not None else ()
        if failures:
            rows = [[escape(text) for text in (each.page, each.id, each.kind, each.reason)] for each in failures]
            caption = f"Tests that {reader.name} failed"
            listed = table(caption, ["page", "test", "kind", "reason"], rows, 2)
            parts.append(f"<details><summary>{escape(caption)}: {len(rows)}</summary>{listed}</details>")
    return "".join(parts)


def training_figures(found: Curves) -> str:
    """Curves of a run; empty if the log has none."""
    pictures = []
    if found.loss:
        lines = [Line("loss", "first", thinned(found.loss))]
        pictures.append(
            figure("Loss on answers", curves("loss", "Training loss by step", lines, "{:.3g}".format, "{:g}".format))
        )
    if found.cer:
        lines = [Line("held-out pages", "first", found.cer, has_dots=True)]
        entries = [("first", "held-out pages")]
        if found.forgetting_cer:
            lines.append(Line("general pages", "second", found.forgetting_cer, has_dots=True))
            entries.append(("second", "general pages, which must not get worse"))
        level = None
        if found.base_cer is not None:
            level = Line("base model", "level", [(0, found.base_cer)])
            entries.append(("level", f"base model on the held-out pages, {percent(found.base_cer)}"))
        picture = curves("cer", "Character error rate by step", lines, percent, _axis_percent, level)
        pictures.append(figure("Character error rate while training", picture, legend(entries)))
    if not pictures:
        return ""
    return f'<h2>Training</h2><div class="charts">{"".join(pictures)}</div>{_points_table(found)}'


def _points_table(found: Curves) -> str:
    steps = sorted({step for step, _ in (*found.cer, *found.forgetting_cer)})
    held_out, general, losses = dict(found.cer), dict(found.forgetting_cer), dict(found.loss)
    rows = [
        [f"{step:g}", *(percent(values[step]) if step in values else "-" for values in (held_out, general)),
         f"{losses[step]:.4g}" if step in losses else "-"]
        for step in steps
    ]  # fmt: skip
    if not rows:
        return ""
    inside = table("Checks during training", ["step", "CER, held-out pages", "CER, general pages", "loss"], rows)
    return f"<details><summary>The curves as a table</summary>{inside}</details>"


def _change_table(result: EvaluationResult) -> str:
    adapter, base = result.adapter, result.base
    if adapter is None or base is None:
        return ""
    rows = []
    for tier, score in adapter.tiers.items():
        if tier not in base.tiers:
            continue
        change = score.cer - base.tiers[tier].cer
        low, high = score.intervals.get("cer_change", (change, change))
        kind = "good" if high < 0 else "bad" if low > 0 else "quiet"
        verdict = {"good": "better", "bad": "worse", "quiet": "not told apart"}[kind]
        rows.append([
            escape(tier), percent(base.tiers[tier].cer), percent(score.cer),
            f"{100 * change:+.2f}<small>{100 * low:+.2f} to {100 * high:+.2f}</small>",
            f'<span class="{kind}">{verdict}</span>',
        ])  # fmt: skip
    caption = f"What {adapter.name} changes, in points of CER"
    return table(caption, ["tier", "CER of the base", "CER", "change", ""], rows)


def _cell(score: TierScore, key: str) -> str:
    value = getattr(score, key)
    if value is None:
        return "-"
    interval = (score.cer_low, score.cer_high) if key == "cer" else score.intervals.get(key)
    if interval is None:
        return percent(value)
    return f"{percent(value)}<small>{100 * interval[0]:.1f} to {100 * interval[1]:.1f}</small>"


def _overall(reader: ReaderResult) -> float:
    """Error rate over all tiers."""
    counts = (ErrorCount(round(score.cer * score.characters), score.characters) for score in reader.tiers.values())
    return total(counts).rate


def _tiers_note(reader: ReaderResult) -> str:
    if len(reader.tiers) == 1:
        (score,) = reader.tiers.values()
        return f"{percent(score.cer_low)} to {percent(score.cer_high)}"
    return ", ".join(f"{tier} {percent(score.cer)}" for tier, score in reader.tiers.items())


def _tile(title: str, value: str, note: str) -> str:
    said = f'<dd class="note">{escape(note)}</dd>' if note else ""
    return f'<div><dt>{escape(title)}</dt><dd class="value">{value}</dd>{said}</div>'


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}\u2026"


def _axis_percent(share: float) -> str:
    return f"{100 * share:g} %"
