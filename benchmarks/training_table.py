"""Training results as Markdown: each way of training beside plain PEFT. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
FIRST = "plain"
NOTHING = "No results are committed yet.\n"
_SAME = ("card", "mode", "case", "batch", "text_tokens", "memory_gib", "unsloth_compile")


def training_table(rows: Iterable[Row]) -> str:
    """Steps and longest texts of each card.

    Args:
        rows: What `training.py` wrote, oldest first; of rows that say the same thing the last one counts.

    Returns:
        Markdown.
    """
    last = {tuple(row.get(name) for name in _SAME): row for row in rows}
    parts = []
    for card in dict.fromkeys(row["card"] for row in last.values()):
        own = [row for row in last.values() if row["card"] == card]
        steps = [row for row in own if row["case"] == "step"]
        longest = [row for row in own if row["case"] == "longest"]
        parts += [_steps(steps)] if steps else []
        parts += [_longest(longest)] if longest else []
        parts += [_origin(found) for found in (steps, longest) if found]
    return "\n".join(parts) or NOTHING


def _steps(rows: Sequence[Row]) -> str:
    lines = [_line(["way", "batch", "text tokens", "ms a step", "speed", "peak GiB", "memory"]), _line(["---"] * 7)]
    for text_tokens in sorted({row["text_tokens"] for row in rows}):
        own = [row for row in rows if row["text_tokens"] == text_tokens]
        first = next((row for row in own if row["mode"] == FIRST and "step_ms" in row), None)
        for row in own:
            name = f"{row['mode']}, compiled" if row.get("unsloth_compile") else row["mode"]
            cells = [name, str(row["batch"]), str(text_tokens)]
            if "step_ms" not in row:
                lines.append(_line([*cells, "out of memory", "", "", ""]))
                continue
            speed = f"{first['step_ms'] / row['step_ms']:.2f} x" if first else "-"
            share = f"{row['peak_gib'] / first['peak_gib']:.0%}" if first and first["peak_gib"] else "-"
            lines.append(_line([*cells, f"{row['step_ms']:g}", speed, f"{row['peak_gib']:g}", share]))
    return "\n".join(lines) + "\n"


def _longest(rows: Sequence[Row]) -> str:
    lines = [_line(["way", "memory", "longest text, tokens", "against plain"]), _line(["---"] * 4)]
    for row in rows:
        first = next((each for each in rows if each["mode"] == FIRST and each["memory_gib"] == row["memory_gib"]), None)
        most = row["longest_text_tokens"]
        # Where nothing was too long, the search ended at its own limit or for want of time.
        said = f"{most}" if row["too_long_text_tokens"] else f"{most} at least"
        times = f"{most / first['longest_text_tokens']:.1f} x" if first and first["longest_text_tokens"] else "-"
        lines.append(_line([row["mode"], f"{row['memory_gib']:g} GiB", said, times]))
    return "\n".join(lines) + "\n"


def _origin(rows: Sequence[Row]) -> str:
    row = max(rows, key=lambda each: each["date"])
    names = ("torch", "transformers", "peft", "unsloth")
    versions: dict[str, str] = {}
    for each in rows:
        versions |= {name: each["versions"][name] for name in names if each["versions"].get(name)}
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    commands = "; ".join(f"`{each}`" for each in dict.fromkeys(each["command"] for each in rows))
    return f"{row['card']}, {said}, commit {row['commit'][:10]}, {row['date'][:10]}; {commands}.\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
