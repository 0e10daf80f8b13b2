"""`deepsynth describe`: reference pages generated from the code (settings, errors, metrics).

`python -m service describe --write .` rewrites them; a test fails when one is stale.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from service.cli.output import print_output
from service.config import PREFIX, RENAMED, TRAINER_PREFIX, ServiceSettings
from service.errors import error_classes
from service.telemetry import gateway
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
        "The service reads environment variables and a file `.env` in its working folder; the environment wins. An",
        "empty value counts as unset. An unknown name that starts with `DEEPSYNTH_` stops the start, and the error",
        f"suggests the nearest name; names that start with `{TRAINER_PREFIX}` belong to the trainer and are ignored.",
        "",
        "| Variable | Default | Values | Meaning |",
        "|---|---|---|---|",
    ]
    for name, field in ServiceSettings.model_fields.items():
        default = _shown(field.default)
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        bounds = _bounds(schema["properties"][name], definitions)
        lines.append(f"| `{PREFIX}{name.upper()}` | {f'`{default}`' if default else ''} | {bounds} | {meaning} |")
    lines += ["", "Old names are still read, with a warning at the start; setting both names is an error.", ""]
    lines += [
        "| Old name | Now |",
        "|---|---|",
        *(f"| `{PREFIX}{old}` | `{PREFIX}{new}` |" for old, new in RENAMED.items()),
    ]
    return "\n".join(lines) + "\n"


COMPOSE_VARIABLES = {
    "BASE_IMAGE": ("python:3.11-slim-bookworm", "Image that the images are built upon, with Python 3.11 or newer."),
    "PIP_ARGS": ("", "More arguments for pip while images are built, such as the index that has torch without CUDA."),
    "GPU_MODEL": ("deepseek-ai/DeepSeek-OCR", "What api-gpu reads with."),
    "HF_TOKEN": ("", "Token for private models of the Hugging Face Hub."),
    "TRAINING_DATA": ("./docs/samples", "Folder that the trainer sees as /data, read-only."),
    "TRAINER_MEMORY": ("16g", "Maximum memory of the trainer."),
    "DEEPSYNTH_TRAINER_THREADS": ("", "Threads of the trainer on a CPU; one per core when unset."),
}
"""Variables that docker-compose.yml reads apart from the service's settings: default and meaning."""


def env_page() -> str:
    """`.env.example`."""
    lines = [f"# {_GENERATED.replace('`', '')}", "# Copy to .env and remove the # of lines that you change.", ""]
    for name, field in ServiceSettings.model_fields.items():
        lines.append("# " + " ".join((field.description or "").split()).replace("`", ""))
        lines.append(f"#{PREFIX}{name.upper()}={_shown(field.default)}")
    lines += ["", "# For docker compose alone."]
    for name, (default, meaning) in COMPOSE_VARIABLES.items():
        lines += [f"# {meaning}", f"#{name}={default}"]
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """`docs/errors.md`."""
    lines = [
        "# Errors",
        "",
        f"<!-- {_GENERATED} -->",
        "",
        "Every error is `application/problem+json` (RFC 9457) with `type`, `title`, `status`, `code`, `retryable` and",
        "`request_id`, and `trace_id` where tracing is on; some add members such as `field`, `expected` or a limit.",
        "`code` is stable. 429, 503 and 507 have a `Retry-After` header. Code and outcome are also the labels of",
        "`deepsynth_requests_total`.",
        "Routes that speak another service's protocol send its shape, with the same status and code",
        "([api.md](api.md#clients)).",
        "",
        "| Code | Status | Retry | Outcome | Title |",
        "|---|---|---|---|---|",
    ]
    for cls in sorted(error_classes().values(), key=lambda each: (each.status, each.code)):
        retry = "yes" if cls.retryable else "no"
        lines.append(f"| `{cls.code}` | {cls.status} | {retry} | {cls.outcome} | {cls.title} |")
    lines += ["", "499 is only counted: the client has gone and receives nothing.", ""]
    return "\n".join(lines)


def metrics_page() -> str:
    """`docs/metrics.md`."""
    lines = [
        "# Metrics",
        "",
        f"<!-- {_GENERATED} -->",
        "",
        "`GET /metrics`, Prometheus text format. Labels have a fixed set of values, whose series start at 0. HTTP",
        "metrics (`http_*`, by route template, method and status) and process metrics (`process_*`, `python_*`) come",
        "from their libraries.",
        "",
        "| Metric | Type | Labels | Meaning |",
        "|---|---|---|---|",
    ]
    for spec in TABLE:
        shown = [f"`{name}`" + (f" ({', '.join(values)})" if values else "") for name, values in spec.labels.items()]
        labels = ", ".join(shown)
        lines.append(f"| `{spec.name}` | {spec.kind} | {labels} | {spec.help} |")
    lines += [
        "",
        "The endpoint picker of Kubernetes' Gateway API Inference Extension reads these, by the names that it expects",
        "by default. Labels of the last one are names of adapters and change with every load, so Prometheus should not",
        "keep it: `deploy/prometheus/prometheus.yml` drops all three.",
        "",
        "| Metric | Type | Labels | Meaning |",
        "|---|---|---|---|",
    ]
    for name, meaning in gateway.TABLE.items():
        labels = ", ".join(f"`{label}`" for label in gateway.LORA_LABELS) if name == gateway.LORA_INFO else ""
        lines.append(f"| `{name}` | gauge | {labels} | {meaning} |")
    return "\n".join(lines) + "\n"


PAGES: dict[str, Page] = {
    "configuration": Page("docs/configuration.md", configuration_page),
    "env": Page(".env.example", env_page),
    "errors": Page("docs/errors.md", errors_page),
    "metrics": Page("docs/metrics.md", metrics_page),
}


def write_pages(root: Path) -> list[Path]:
    """Rewrite every page under a repository root; returns the files written."""
    written = []
    for page in PAGES.values():
        path = root / page.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page.render(), encoding="utf-8")
        written.append(path)
    return written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its flags."""
    parser.description = "Print a reference page that is generated from the code, or rewrite all of them."
    parser.add_argument("page", nargs="?", help=", ".join(PAGES))
    parser.add_argument("--write", type=Path, metavar="ROOT", help="rewrite every page under this repository root")


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Print a page, or write all of them, and return the exit status."""
    if arguments.write is not None:
        for path in write_pages(arguments.write):
            print_output(f"{path}\n")
        return 0
    if arguments.page not in PAGES:
        parser.error(f"describe takes one of: {', '.join(PAGES)}")
    print_output(PAGES[arguments.page].render())
    return 0
