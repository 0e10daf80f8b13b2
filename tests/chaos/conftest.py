"""Proofs in two lengths: the short one runs with all tests, the long one with `--long`."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def length(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """Chooses between the short and the long form's number of cases."""
    is_long, share = request.config.getoption("--long"), request.config.getoption("--share")
    return lambda short, long: max(short, round(long * share)) if is_long else short


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--long"))


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Takes what a proof measured, to be printed at the end of the run."""

    def note(**measured: object) -> None:
        for name, value in measured.items():
            record_property(name, round(value, 4) if isinstance(value, float) else value)

    return note


def pytest_terminal_summary(terminalreporter):
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    for report in reports:
        if report.when == "call" and report.user_properties:
            terminalreporter.write_line(report.nodeid)
            for name, value in report.user_properties:
                terminalreporter.write_line(f"    {name}: {value}")
