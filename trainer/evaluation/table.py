"""Results as tables: plain text for a terminal, Markdown for a model card. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from trainer.evaluation.results import NORMALISATION, EvaluationResult
from trainer.evaluation.scores import TierScore

COLUMNS = ("tier", "reader", "pages", "CER", "95 % interval", "median", "capped", "WER", "exact", "loops", "s/page")
NOT_MEASURED = "Not measured yet."


def rows(result: EvaluationResult) -> list[tuple[str, ...]]:
    """One row for each tier and reader, tiers together, in the order of `COLUMNS`."""
    return [
        (tier, reader.name, *_cells(reader.tiers[tier]))
        for tier in result.tiers
        for reader in result.readers
        if tier in reader.tiers
    ]


def text_table(result: EvaluationResult) -> str:
    """Aligned columns, the first two to the left."""
    lines = [COLUMNS, *rows(result)]
    widths = [max(map(len, column)) for column in zip_longest(*lines, fillvalue="")]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown_table(result: EvaluationResult | None) -> str:
    """The table of a model card, with what it was measured on; a plain sentence where there is no result."""
    if result is None:
        return NOT_MEASURED
    alignments = ["---"] * 2 + ["---:"] * (len(COLUMNS) - 2)
    table = [_markdown_row(line) for line in (COLUMNS, alignments, *rows(result))]
    return "\n".join([*table, "", *_notes(result)])


def _cells(score: TierScore) -> tuple[str, ...]:
    return (
        str(score.pages),
        _percent(score.cer),
        f"{100 * score.cer_low:.2f}-{_percent(score.cer_high)}",
        _percent(score.cer_median),
        _percent(score.cer_capped),
        _percent(score.wer),
        f"{100 * score.exact_ratio:.0f} %",
        f"{100 * score.unfinished_ratio:.1f} %",
        f"{score.seconds_per_page:.2f}",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _notes(result: EvaluationResult) -> list[str]:
    machine = ", ".join(result.machine.values())
    sets = "; ".join(f"`{entry.name}` ({entry.pages} pages, sha256 `{entry.sha256[:12]}`)" for entry in result.sets)
    readers = [
        f"- {reader.name}: {', '.join(f'{key} {_shortened(value)}' for key, value in reader.details.items())}"
        for reader in result.readers
    ]
    return [
        f"Measured {result.date[:10]} at commit `{result.commit[:12]}` on {machine}; sets: {sets}.",
        "",
        *readers,
        "",
        f"CER and WER are micro rates (all edits over all characters or words); texts compared after: {NORMALISATION}. "
        "The interval is a percentile bootstrap over pages. Median: of the pages' own rates. Capped: at most one edit "
        "per character of a page. Exact: pages without any error. Loops: readings that repeated themselves or met the "
        "token limit.",
    ]


def _shortened(value: str) -> str:
    """Checksums as twelve digits."""
    is_checksum = len(value) == 64 and all(digit in "0123456789abcdef" for digit in value)
    return f"`{value[:12]}`" if is_checksum else value
