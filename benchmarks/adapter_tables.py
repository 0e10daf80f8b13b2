"""New versions of adapters as Markdown: their way into service, and what it costs those who are served. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
NOTHING = "No results are committed yet.\n"
_STAGES = ("copy", "load", "place", "canary", "answer", "total")


def loading_table(rows: Iterable[Row]) -> str:
    """From a folder to the first text of its adapter.

    Args:
        rows: What `adapter_load.py` wrote, oldest first; of rows of one card, model and rank the last one counts.

    Returns:
        Markdown.
    """
    parts = []
    for row in _last(rows, "card", "model", "rank"):
        heads = ["ms", *_STAGES, "worst total"]
        lines = [_line(heads), _line(["---"] * len(heads))]
        for case, name in (("idle", "idle engine"), ("busy", f"beside {row['streams']} pages")):
            figures = [row[case][f"{stage}_ms"] for stage in (*_STAGES, "worst_total")]
            lines.append(_line([name, *(f"{figure:.1f}" for figure in figures)]))
        gaps = ((row.get(f"gap_{what}ms"), said) for what, said in (("", "loads and canaries"),
                ("answer_", "an ordinary page that begins"), ("without_loads_", "neither")))  # fmt: skip
        said = ", ".join(f"{gap:.0f} ms with {said}" for gap, said in gaps if gap is not None)
        about = f"Model {row['model']}, rank {row['rank']}, weights of {row['weights_mb']:g} MB."
        parts += [
            "\n".join(lines) + "\n",
            f"{about} Longest time without new text of a page that is being read: {said}.\n",
        ]
        parts.append(_origin(row))
    return "\n".join(parts) or NOTHING


def publishing_table(rows: Iterable[Row]) -> str:
    """A service under load with publications and without.

    Args:
        rows: What `adapters.py` wrote, oldest first; of rows of one card the last one counts.

    Returns:
        Markdown.
    """
    parts = []
    for row in _last((row for row in rows if row.get("publications")), "card"):
        aims, quiet, live = row["targets"], row["without_publications"], row["with_publications"]
        low, high = row["p99_ratio_interval"]
        lines = [_line(["what", "figure", "aim"]), _line(["---"] * 3)]
        for what, figure, aim in (
            ("requests without and with publications", f"{quiet['requests']} and {live['requests']}", "-"),
            ("failed", f"{row['failed']}", f"{aims['failed']}"),
            ("not the text of the version named", f"{row['wrong']}", f"{aims['wrong']}"),
            ("latency, median", f"{quiet['p50_s']:.2f} s and {live['p50_s']:.2f} s", "-"),
            ("latency, 99 %", f"{quiet['p99_s']:.2f} s and {live['p99_s']:.2f} s", "-"),
            ("ratio of these", f"{row['p99_ratio']:.2f} (95 %: {low:.2f} to {high:.2f})", f"{aims['p99_ratio']}"),
            ("rename to first answer, idle: worst", f"{row['first_answer_s']:.2f} s", f"{aims['first_answer_s']} s"),
            ("rename to first answer, under load: median", f"{row['busy_answer_median_s']:.2f} s", "-"),
            (f"memory after {row['loads']} loads", f"{row['growth_mib']:+.1f} MiB", f"{aims['growth_mib']} MiB"),
        ):
            lines.append(_line([what, figure, aim]))
        load = f"{row['publications']} publications, one every {row['interval_s']:g} s,"
        about = f"{load} at {row['utilisation']:.0%} of {row['capacity_pages_per_s']:.2f} pages/s.\n"
        parts += ["\n".join(lines) + "\n", about, _origin(row)]
    return "\n".join(parts) or NOTHING


def _last(rows: Iterable[Row], *names: str) -> Sequence[Row]:
    return list({tuple(row.get(name) for name in names): row for row in rows}.values())


def _origin(row: Row) -> str:
    versions = ", ".join(f"{name} {row['versions'][name]}" for name in ("torch", "triton") if name in row["versions"])
    clock = f" at {row['clock_mhz']} MHz" if row.get("clock_mhz") else ""
    return f"{row['card']}{clock}, {versions}, commit {row['commit'][:10]}, {row['date'][:10]}; `{row['command']}`.\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
