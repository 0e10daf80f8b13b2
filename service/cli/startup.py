"""What commands do first: read the settings, set up logging, and log warnings about settings."""

from __future__ import annotations

import logging

from service.config import LogLevel, ServiceSettings, load_settings
from service.telemetry.logs import configure_logs

_log = logging.getLogger(__name__)


def start(level: LogLevel | None = None) -> ServiceSettings:
    """Read the settings and set up logging; `level` replaces the configured log level.

    A `ConfigurationError` says what is wrong with the settings.
    """
    warnings: list[str] = []
    settings = load_settings(warn=warnings.append)
    configure_logs(level or settings.log_level, settings.log_format)
    for text in warnings:
        _log.warning(text)
    return settings
