"""Log lines: text for people or JSON for log collectors, with request and trace ids, without content of documents.

Call sites pass `extra={"fields": {...}}` with ids, sizes, times and codes. Exceptions are logged by type and stack
frames; their messages are left out, since they may quote a document.
"""

from __future__ import annotations

import contextvars
import json
import logging
import sys
import time
import traceback
from collections.abc import Mapping
from types import TracebackType

from opentelemetry import trace

request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def trace_id() -> str | None:
    """The current span's trace, in 32 hexadecimal digits; None outside of one, as where tracing is off."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = {}
    if (current := request_id.get()) is not None:
        fields["request_id"] = current
    if (traced := trace_id()) is not None:
        fields["trace_id"] = traced
    given = getattr(record, "fields", None)
    if isinstance(given, Mapping):
        fields.update(given)
    if record.exc_info and record.exc_info[0] is not None:
        fields["error"] = record.exc_info[0].__qualname__
        fields["where"] = _where(record.exc_info)
    return fields


def _where(exc_info: _ExcInfo) -> list[str]:
    frames = traceback.extract_tb(exc_info[2])
    return [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}:{frame.name}" for frame in frames]


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {name}={_plain(value)}" for name, value in _fields(record).items())
        return f"{clock} {record.levelname.lower():7} {record.getMessage()}{fields}"


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    # Operators' and clients' words could forge lines, or move a terminal's cursor.
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(value))


def configure_logs(level: str, log_format: str) -> None:
    """Send all log lines of the process to standard error; `level` in lower case, `log_format` `json` or `text`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # It logs client addresses and query strings; the middleware logs one line per request instead.
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    # It logs whole URLs, which may contain a webhook's secret.
    logging.getLogger("httpx").setLevel(logging.WARNING)
