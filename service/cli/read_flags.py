"""Flags of the commands that read documents: how a page is read, under the names that `POST /ocr` has for it."""

from __future__ import annotations

import argparse
from dataclasses import fields
from enum import StrEnum
from typing import Any

from service.cli.reading import ReadOptions
from service.ocr import labels
from service.ocr.confidence import Granularity
from service.ocr.outcome import BlankPages, Orientation
from service.ocr.tables import TableFormat
from shared.contract.prompts import Task
from shared.deepseek_ocr.geometry import Mode
from shared.deepseek_ocr.reading_layout import ReadingLayout


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise ValueError
    return number


_share.__name__ = "number from 0 to 1"  # what argparse calls a wrong value

_CHOICES: dict[str, type[StrEnum]] = {
    "task": Task,
    "mode": Mode,
    "confidence": Granularity,
    "blank_pages": BlankPages,
    "orientation": Orientation,
    "layout": ReadingLayout,
    "table_format": TableFormat,
}
_FLAGS: dict[str, dict[str, Any]] = {
    "task": {"default": str(Task.FREE), "help": "default: free"},
    "query": {"help": "what to look for; with --task locate"},
    "mode": {"help": "resolution, if the model has it; default: the model's own"},
    "model_id": {"metavar": "NAME", "help": "adapter, NAME or NAME@VERSION; with --url"},
    "pages": {"help": "pages of a PDF or TIFF, such as 1-3,7; default: all, and the first frame of an animation"},
    "max_new_tokens": {"type": int, "metavar": "N", "help": "maximum tokens per page"},
    "temperature": {"type": float, "metavar": "T", "help": "sample tokens, 0 to 2; default: 0, greedy"},
    "seed": {"type": int, "metavar": "N", "help": "makes sampling repeatable; with --temperature"},
    "confidence": {"help": "how fine confidences are given; with --json, or the formats json, hocr and alto"},
    "review_threshold": {
        "type": _share,
        "metavar": "P",
        "help": "list words and digits whose confidence is below it, 0 to 1; with --json or --format json",
    },
    "blank_pages": {
        "help": "skip pages that show no print, or read them and give every answer; default: DEEPSYNTH_BLANK_PAGES"
    },
    "min_confidence": {
        "type": _share,
        "metavar": "SHARE",
        "help": "leave out less certain answers for pages with little print; default: DEEPSYNTH_MIN_CONFIDENCE",
    },
    "min_coverage": {
        "type": _share,
        "metavar": "SHARE",
        "help": "warn of pages of whose print less was read; default: DEEPSYNTH_MIN_COVERAGE",
    },
    "orientation": {
        "help": "turn pages that are not upright, or read them as they are; default: DEEPSYNTH_ORIENTATION"
    },
    "layout": {"help": "read pages whole or by their lines, if the model does; default: auto, as suits the model"},
    "pages_together": {
        "action": "store_true",
        "help": "read all pages of a file in one pass, where the model can",
    },
    "table_format": {"help": "how tables in Markdown are written; default: as the model wrote them"},
    "omit": {"metavar": "LABELS", "help": f"parts to leave out by their labels: {', '.join(labels.REPEATED)}"},
    "figures": {
        "action": "store_true",
        "help": "cut figures out: into a folder next to the Markdown with --format markdown --out, else into the "
        "output",
    },
    "join_pages": {"action": "store_true", "help": "join paragraphs and tables that go on across pages"},
}


def add_read_flags(parser: argparse._ActionsContainer, *names: str) -> None:
    """Add flags to a parser or to a group of it, by their names in `ReadOptions`."""
    for name in names:
        choices: dict[str, Any] = {"choices": [str(choice) for choice in _CHOICES[name]]} if name in _CHOICES else {}
        parser.add_argument(f"--{name.replace('_', '-')}", **choices, **_FLAGS[name])


def read_options(arguments: argparse.Namespace) -> ReadOptions:
    """What the flags of a command say; the others are as by default."""
    given = {each.name: getattr(arguments, each.name) for each in fields(ReadOptions) if each.name in arguments}
    for name, kind in _CHOICES.items():
        if given.get(name) is not None:
            given[name] = kind(given[name])
    return ReadOptions(**given)
