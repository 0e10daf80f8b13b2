"""The report of a sweep: one self-contained HTML file with its trials as a table and as pictures.

Knows the record's format, not how trials are run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import accumulate
from typing import Any

from trainer.report.chart import Line, curves
from trainer.report.figures import percent
from trainer.report.html import facts, figure, legend, table
from trainer.report.page import document

SWEEP_FILE = "sweep.json"
"""Record of a sweep, in its folder."""
COMPLETE = "complete"


def sweep_page(record: Mapping[str, Any], name: str) -> str:
    """The HTML report of a sweep.

    Args:
        record: content of its `sweep.json`.
        name: title of the report.

    Returns:
        An HTML document.
    """
    trials = [each for each in record["trials"] if each["cer"] is not None]
    complete = [each for each in trials if each["state"] == COMPLETE]
    names = [each["name"] for each in record["space"]]
    body = [f"<h1>{escape(name)}</h1>", f'<p class="quiet">{escape(_summary(record, complete))}</p>']
    if complete:
        body.append(_progress(complete))
        body += [_effect(option, complete) for option in names if _is_numeric(option, complete)]
    if record["trials"]:
        body.append(_table(record["trials"], names))
    body.append(facts("What stayed the same", {key.replace("_", "-"): v for key, v in record["options"].items()}))
    about = {key: record[key] for key in ("date", "commit", "machine", "versions", "budget")}
    return document(f"{name}: sweep", [*body, facts("Where the figures come from", about)])


def _summary(record: Mapping[str, Any], complete: Sequence[Mapping[str, Any]]) -> str:
    hours = sum(each["seconds"] for each in record["trials"]) / 3600
    said = f"{len(record['trials'])} trials, {len(complete)} of them to their end, {hours:.2f} hours of training."
    if not complete:
        return said
    best = min(complete, key=lambda each: each["cer"])
    values = ", ".join(f"{name.replace('_', '-')} {_short(value)}" for name, value in best["values"].items())
    return (
        f"{said} The lowest error rate on the held-out pages is {percent(best['cer'])}, by trial {best['number'] + 1} "
        f"({values}). It was chosen by these pages: measure it on others before you publish."
    )


def _progress(complete: Sequence[Mapping[str, Any]]) -> str:
    points = [(each["number"] + 1, each["cer"]) for each in complete]
    best = list(zip([at for at, _ in points], accumulate((cer for _, cer in points), min), strict=True))
    lines = [Line("best so far", "first", best), Line("trial", "second", points, has_dots=True, has_line=False)]
    picture = curves("sweep-progress", "Error rate by trial", lines, percent, _axis, across_name="trial")
    return figure("Error rate by trial", picture, legend([("first", "best so far"), ("second", "trial")]))


def _effect(option: str, complete: Sequence[Mapping[str, Any]]) -> str:
    points = sorted((float(each["values"][option]), each["cer"]) for each in complete)
    shown = option.replace("_", "-")
    line = Line("trial", "second", points, has_dots=True, has_line=False)
    title = f"Error rate by {shown}"
    return figure(title, curves(f"sweep-{shown}", title, [line], percent, _axis, across_name=shown))


def _table(trials: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Trials by error rate, those without one last."""
    ordered = sorted(trials, key=lambda each: (each["state"] != COMPLETE, each["cer"] is None, each["cer"] or 0.0))
    columns = ["trial", *(name.replace("_", "-") for name in names), "CER", "state", "minutes"]
    rows = [
        [
            str(each["number"] + 1),
            *(escape(_short(each["values"].get(name, ""))) for name in names),
            "" if each["cer"] is None else percent(each["cer"]),
            escape(" ".join([each["state"], each["message"]]).strip()),
            f"{each['seconds'] / 60:.1f}",
        ]
        for each in ordered
    ]
    return table("Trials, the lowest error rate first", columns, rows)


def _is_numeric(option: str, complete: Sequence[Mapping[str, Any]]) -> bool:
    try:
        return len({float(each["values"][option]) for each in complete}) > 1
    except (KeyError, TypeError, ValueError):
        return False


def _axis(share: float) -> str:
    return f"{100 * share:g} %"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
