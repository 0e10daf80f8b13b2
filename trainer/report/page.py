"""The report of a run or of an evaluation: one self-contained HTML file.

Owns the order of the sections and their text. Style, pictures and images are inside; nothing is loaded,
and no script runs. Every text from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from trainer.evaluation.results import NORMALISATION, EvaluationResult, ReaderResult
from trainer.report.curves import Curves
from trainer.report.figures import page_tests, percent, rates_figure, summary_tiles, tables, training_figures
from trainer.report.html import facts
from trainer.report.pages import page_section
from trainer.report.worst import WorstPage

STYLE_FILE = Path(__file__).with_name("style.css")
# Load nothing, even if a text injects a reference.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def report_page(
    result: EvaluationResult | None,
    worst: Sequence[WorstPage] = (),
    curves: Curves | None = None,
    run: Mapping[str, Any] | None = None,
    name: str = "",
) -> str:
    """The HTML report of what is available.

    Args:
        result: figures; None for a run that has not been evaluated.
        worst: pages to show, the worst first.
        curves: of a training run.
        run: the content of its `run.json`.
        name: title of the report; else the first reader's name.

    Returns:
        An HTML document.
    """
    title = name or (result.readers[0].name if result else "Training run")
    body = [_header(title, result)]
    if result is not None:
        body += [summary_tiles(result), "<h2>How well it reads</h2>", rates_figure(result), tables(result)]
        if result.tiers:
            body.append(f'<p class="quiet">{escape(_explanation(result))}</p>')
        body.append(page_tests(result))
    if curves is not None:
        body.append(training_figures(curves))
    if worst:
        body.append(_worst_section(worst))
    body.append(_details(result, run))
    return document(f"{title}: report", body)


def document(title: str, body: Sequence[str]) -> str:
    """An HTML document with the style of reports; the parts of `body` are HTML already."""
    style = STYLE_FILE.read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _header(title: str, result: EvaluationResult | None) -> str:
    if result is None:
        return f'<h1>{escape(title)}</h1><p class="quiet">Not measured yet: this run has not been evaluated.</p>'
    named = [f"{entry.name} ({entry.pages} pages)" for entry in result.sets]
    if result.page_tests is not None:
        named.append(f"{result.page_tests.tests} page tests ({result.page_tests.pages} pages)")
    sets = ", ".join(named)
    base = f" and its base model {result.base.name}" if result.base else ""
    said = f"{result.readers[0].name}{base}, measured on {sets}, {result.date[:10]}."
    return f'<h1>{escape(title)}</h1><p class="quiet">{escape(said)}</p>'


def _explanation(result: EvaluationResult) -> str:
    text = (
        f"Texts are compared after: {NORMALISATION}. CER and WER are edits over characters or words, of all pages "
        "together; capped counts at most one edit per character of a page. Exact: pages without any error. Loops: "
        "readings that repeated themselves or met the token limit. ROUGE and BLEU are shares of words and word "
        "sequences, TEDS of trees of tables. Ranges are 95 % intervals of a percentile bootstrap over pages."
    )
    if result.base is not None:
        text += " The change is judged page by page, so its interval is narrower than those of the two rates."
    return text


def _worst_section(worst: Sequence[WorstPage]) -> str:
    sections = "".join(page_section(place, page) for place, page in enumerate(worst, 1))
    return (
        f"<h2>The {len(worst)} pages read worst</h2><p>In each reading <del>struck through</del> was missed and "
        f"<ins>underlined</ins> was added; white space is folded as it is for the rates.</p>{sections}"
    )


def _details(result: EvaluationResult | None, run: Mapping[str, Any] | None) -> str:
    parts = ["<h2>Where the figures come from</h2>"]
    if result is not None:
        parts += [_reader(reader) for reader in result.readers]
        sets = {entry.name: f"{entry.pages} pages, sha256 {entry.sha256}" for entry in result.sets}
        tested = result.page_tests
        if tested is not None:
            sets["page tests"] = f"{', '.join(tested.files)}: {tested.pages} pages, sha256 {tested.sha256}"
        source = {"measured": result.date, "commit": result.commit, **result.machine, **result.versions}
        parts.append(facts("Pages", sets) + facts("Evaluation", source))
    if run is not None:
        flat = {key: value for key, value in run.items() if not isinstance(value, Mapping)}
        parts.append(facts("Training", flat))
        parts += [facts(f"Training: {key}", value) for key, value in run.items() if isinstance(value, Mapping)]
    return "".join(parts)


def _reader(reader: ReaderResult) -> str:
    tiers = ", ".join(f"{tier} {percent(score.cer)}" for tier, score in reader.tiers.items())
    return facts(f"Reader: {reader.name}", {**({"CER": tiers} if tiers else {}), **reader.details})
