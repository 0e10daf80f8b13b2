"""What a run has logged: one JSON event a line. Reads while the run writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

LOG_FILE: Final = "log.jsonl"
"""Name of the log in a run's folder."""


def read_events(log: Path, name: str | None = None) -> Iterator[dict[str, Any]]:
    """Read a log, which need not exist. A line that a kill has cut, or that is being written, is passed over.

    Args:
        log: the file.
        name: of the events; None: all.

    Yields:
        Events in their order.
    """
    if not log.is_file():
        return
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and name in (None, event.get("event")):
                yield event
