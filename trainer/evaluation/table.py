"""Results as tables: plain text for a terminal, Markdown for a model card. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from trainer.evaluation.page_test_file import told_skipped
from trainer.evaluation.results import NORMALISATION, EvaluationResult
from trainer.evaluation.scores import TierScore

COLUMNS = ("tier", "reader", "pages", "CER", "95 % interval", "median", "capped", "WER", "exact", "loops", "s/page")
OVERLAP_COLUMNS = ("tier", "reader", "ROUGE-1", "ROUGE-2", "ROUGE-L", "BLEU", "BERTScore")
CHANGE_COLUMNS = ("tier", "adapter", "CER of base", "CER", "change", "95 % interval", "errors gone")
TABLE_COLUMNS = ("tier", "reader", "tables", "TEDS", "95 % interval", "structure", "95 % interval")
TEST_COLUMNS = ("page tests", "reader", "pages", "passed", "tests", "rate", "95 % interval")
NOT_MEASURED = "Not measured yet."
ABSENT = "-"
_TEDS_NOTE = " TEDS (mean of the truths' tables, structure without the cells' texts) is out of 100."
_OVERLAP_NOTE = " ROUGE (F1, mean of the pages), BLEU (sacrebleu, all pages together) and BERTScore are out of 100."


def rows(result: EvaluationResult) -> list[tuple[str, ...]]:
    """One row for each tier and reader, tiers together, in the order of `COLUMNS`."""
    return [
        (tier, reader.name, *_cells(reader.tiers[tier]))
        for tier in result.tiers
        for reader in result.readers
        if tier in reader.tiers
    ]


def overlap_rows(result: EvaluationResult) -> list[tuple[str, ...]]:
    """The same for `OVERLAP_COLUMNS`, without readers in older records that lack them."""
    return [
        (tier, reader.name, *map(_share, (score.rouge_1, score.rouge_2, score.rouge_l, score.bleu, score.bert_score)))
        for tier in result.tiers
        for reader in result.readers
        if (score := reader.tiers.get(tier)) is not None and score.rouge_1 is not None
    ]


def table_rows(result: EvaluationResult) -> list[tuple[str, ...]]:
    """The same for `TABLE_COLUMNS`, for tiers whose truths have tables."""
    return [
        (
            tier,
            reader.name,
            str(score.tables),
            _share(score.teds),
            _share_interval(score.intervals.get("teds")),
            _share(score.teds_structure),
            _share_interval(score.intervals.get("teds_structure")),
        )
        for tier in result.tiers
        for reader in result.readers
        if (score := reader.tiers.get(tier)) is not None and score.tables
    ]


def page_test_rows(result: EvaluationResult) -> list[tuple[str, ...]]:
    """Pass rates of page tests for `TEST_COLUMNS`: by kind, of all, and by file where there are several."""
    scores = [(reader.name, reader.page_tests) for reader in result.readers if reader.page_tests is not None]
    found: dict[str, list[tuple[str, ...]]] = {}
    for name, score in scores:
        rates = {**score.kinds, "all": score.overall}
        if score.mean_of_files is not None:
            rates |= {f"file {file}": rate for file, rate in score.files.items()}
        for label, rate in rates.items():
            figures = (str(rate.pages), str(rate.passed), str(rate.tests), *_rate_cells(rate.rate, rate.low, rate.high))
            found.setdefault(label, []).append((label, name, *figures))
        if score.mean_of_files is not None:
            figures = (ABSENT, ABSENT, ABSENT, *_rate_cells(*score.mean_of_files))
            found.setdefault("mean of files", []).append(("mean of files", name, *figures))
    return [line for lines in found.values() for line in lines]


def change_rows(result: EvaluationResult) -> list[tuple[str, ...]]:
    """What an adapter changes, by tier; empty unless the record has an adapter and its base model."""
    adapter, base = result.adapter, result.base
    if adapter is None or base is None:
        return []
    return [
        (tier, adapter.name, *_change_cells(base.tiers[tier], score))
        for tier, score in adapter.tiers.items()
        if tier in base.tiers
    ]


def text_table(result: EvaluationResult) -> str:
    """Tables with aligned columns, the first two to the left."""
    tables = [_aligned([columns, *lines]) for columns, lines in _tables(result)]
    return "\n\n".join([*tables, *([skipped] if (skipped := skipped_note(result)) else [])])


def skipped_note(result: EvaluationResult) -> str:
    """Which page tests were not judged, and why; empty if all were."""
    told = told_skipped(result.page_tests.skipped) if result.page_tests is not None else ""
    return f"Page tests{told.replace(';', ':', 1)}." if told else ""


def markdown_table(result: EvaluationResult | None) -> str:
    """The tables of a model card, with what they were measured on; a sentence if there is no result."""
    if result is None:
        return NOT_MEASURED
    tables = []
    for columns, lines in _tables(result):
        alignments = ["---"] * 2 + ["---:"] * (len(columns) - 2)
        tables += [*(_markdown_row(line) for line in (columns, alignments, *lines)), ""]
    return "\n".join([*tables, *_notes(result)])


def _tables(result: EvaluationResult) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    tables = [
        (COLUMNS, rows(result)),
        (OVERLAP_COLUMNS, overlap_rows(result)),
        (TABLE_COLUMNS, table_rows(result)),
        (CHANGE_COLUMNS, change_rows(result)),
        (TEST_COLUMNS, page_test_rows(result)),
    ]
    return [_measured_columns(columns, lines) for columns, lines in tables if lines]


def _measured_columns(
    columns: tuple[str, ...], lines: list[tuple[str, ...]]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The table without empty columns."""
    kept = [place for place in range(len(columns)) if any(line[place] != ABSENT for line in lines)]
    return tuple(columns[place] for place in kept), [tuple(line[place] for place in kept) for line in lines]


def _aligned(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip_longest(*lines, fillvalue="")]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _change_cells(base: TierScore, adapter: TierScore) -> tuple[str, ...]:
    low, high = adapter.intervals.get("cer_change", (None, None))
    interval = ABSENT if low is None or high is None else f"{100 * low:+.2f} to {100 * high:+.2f}"
    gone = f"{100 * (1 - adapter.cer / base.cer):.0f} %" if base.cer else ABSENT
    return (_percent(base.cer), _percent(adapter.cer), f"{100 * (adapter.cer - base.cer):+.2f}", interval, gone)


def _share(share: float | None) -> str:
    return ABSENT if share is None else f"{100 * share:.1f}"


def _share_interval(ends: tuple[float, float] | None) -> str:
    return ABSENT if ends is None else f"{100 * ends[0]:.1f}-{100 * ends[1]:.1f}"


def _rate_cells(rate: float, low: float, high: float) -> tuple[str, str]:
    return f"{100 * rate:.1f} %", f"{100 * low:.1f}-{100 * high:.1f} %"


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
    named = [f"`{entry.name}` ({entry.pages} pages, sha256 `{entry.sha256[:12]}`)" for entry in result.sets]
    tested = result.page_tests
    if tested is not None:
        files = ", ".join(f"`{file}`" for file in tested.files)
        named.append(f"page tests {files} ({tested.tests} of {tested.pages} pages, sha256 `{tested.sha256[:12]}`)")
    sets = "; ".join(named)
    readers = [
        f"- {reader.name}: {', '.join(f'{key} {_shortened(value)}' for key, value in reader.details.items())}"
        for reader in result.readers
    ]
    return [
        f"Measured {result.date[:10]} at commit `{result.commit[:12]}` on {machine}; sets: {sets}.",
        "",
        *readers,
        "",
        " ".join(filter(None, (_rates_note(result), _tests_note(result)))),
    ]


def _rates_note(result: EvaluationResult) -> str:
    if not result.tiers:
        return ""
    return (
        f"CER and WER are micro rates (all edits over all characters or words); texts compared after: {NORMALISATION}. "
        "The interval is a percentile bootstrap over pages. Median: of the pages' own rates. Capped: at most one edit "
        "per character of a page. Exact: pages without any error. Loops: readings that repeated themselves or met the "
        "token limit." + (_OVERLAP_NOTE if overlap_rows(result) else "") + (_TEDS_NOTE if table_rows(result) else "")
    )


def _tests_note(result: EvaluationResult) -> str:
    if result.page_tests is None:
        return ""
    return f"Page tests are judged as in olmOCR-Bench; intervals by pages. {skipped_note(result)}".strip()


def _shortened(value: str) -> str:
    """Checksums as twelve digits."""
    is_checksum = len(value) == 64 and all(digit in "0123456789abcdef" for digit in value)
    return f"`{value[:12]}`" if is_checksum else value
