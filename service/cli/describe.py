"""Reference pages that are written from the code: settings, errors, metrics.

`python -m service describe --write .` rewrites them; a test fails when one is stale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from service.config import PREFIX, TRAINER_PREFIX, ServiceSettings
from service.errors import error_classes
from service.telemetry.metrics import TABLE

_GENERATED = "Written by `python -m service describe --write .`; do not edit by hand."


@dataclass(frozen=True, slots=True)
class Page:
    """A generated file."""

    path: str
    render: Callable[[], str]


def _shown(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _bounds(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    names = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[name]}" for name, sign in names.items() if name in schema]
    choices = definitions.get(schema.get("$ref", "").rpartition("/")[2], {}).get("enum", [])
    return ", ".join(bounds) or " / ".join(f"`{choice}`" for choice in choices) or _kind(schema)


def _kind(schema: dict[str, Any]) -> str:
    kinds = [each["type"] for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    return {"boolean": "`true` / `false`", "string": "text"}.get(kinds[0], kinds[0]) if kinds else ""


def configuration_page() -> str:
    """`docs/configuration.md`."""
    schema = ServiceSettings.model_json_schema()
    definitions = schema.get("$defs", {})
    lines = [
        "# Configuration",
        "",
        f"<!-- {_GENERATED} -->",
        "",
        "The service reads environment variables and, beneath them, a file `.env` in its working folder. An empty",
        "value counts as unset. A name that starts with `DEEPSYNTH_` and is none of these stops the start with the",
        f"nearest known name; names that start with `{TRAINER_PREFIX}` belong to the trainer and are passed over.",
        "",
        "| Variable | Default | Values | Meaning |",
        "|---|---|---|---|",
    ]
    for name, field in ServiceSettings.model_fields.items():
        default = _shown(field.default)
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        bounds = _bounds(schema["properties"][name], definitions)
        lines.append(f"| `{PREFIX}{name.upper()}` | {f'`{default}`' if default else ''} | {bounds} | {meaning} |")
    return "\n".join(lines) + "\n"


def env_page() -> str:
    """`.env.example`."""
    lines = [f"# {_GENERATED.replace('`', '')}", "# Copy to .env and take away the # where you want another value.", ""]
    for name, field in ServiceSettings.model_fields.items():
        lines.append("# " + " ".join((field.description or "").split()).replace("`", ""))
        lines.append(f"#{PREFIX}{name.upper()}={_shown(field.default)}")
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """`docs/errors.md`."""
    lines = [
        "# Errors",
        "",
        f"<!-- {_GENERATED} -->",
        "",
        "Every error is `application/problem+json` (RFC 9457) with `type`, `title`, `status`, `code`, `retryable` and",
        "`request_id`; some add facts such as `field`, `expected` or a limit. Decide on `code`: it is stable. 429 and",
        "503 carry `Retry-After`. `code` and outcome are also the labels of `deepsynth_requests_total`.",
        "",
        "| Code | Status | Retry | Outcome | Title |",
        "|---|---|---|---|---|",
    ]
    for cls in sorted(error_classes().values(), key=lambda each: (each.status, each.code)):
        retry = "yes" if cls.retryable else "no"
        lines.append(f"| `{cls.code}` | {cls.status} | {retry} | {cls.outcome} | {cls.title} |")
    lines += ["", "499 is only counted: nobody is left to receive it.", ""]
    return "\n".join(lines)


def metrics_page() -> str:
    """`docs/metrics.md`."""
    lines = [
        "# Metrics",
        "",
        f"<!-- {_GENERATED} -->",
        "",
        "`GET /metrics`, Prometheus text format. Labels are closed sets and start at 0. Metrics of HTTP (`http_*`, by",
        "route template, method and status) and of the process (`process_*`, `python_*`) come from their libraries.",
        "",
        "| Metric | Type | Labels | Meaning |",
        "|---|---|---|---|",
    ]
    for spec in TABLE:
        shown = [f"`{name}`" + (f" ({', '.join(values)})" if values else "") for name, values in spec.labels.items()]
        labels = ", ".join(shown)
        lines.append(f"| `{spec.name}` | {spec.kind} | {labels} | {spec.help} |")
    return "\n".join(lines) + "\n"


PAGES: dict[str, Page] = {
    "configuration": Page("docs/configuration.md", configuration_page),
    "env": Page(".env.example", env_page),
    "errors": Page("docs/errors.md", errors_page),
    "metrics": Page("docs/metrics.md", metrics_page),
}


def write_pages(root: Path) -> list[Path]:
    """Rewrite every page.

    Args:
        root: The repository.

    Returns:
        The files written.
    """
    written = []
    for page in PAGES.values():
        path = root / page.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page.render(), encoding="utf-8")
        written.append(path)
    return written
