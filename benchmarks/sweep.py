"""What `kernel_sweep.py` times: one kernel at one size with several configurations.

A configuration is anything with a `str`: tiles that a kernel takes as an argument, or `Settings`, values for constants
of a kernel's module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from types import ModuleType
from typing import Any
from unittest.mock import patch


@dataclass(frozen=True, slots=True)
class Sweep:
    """One kernel at one size."""

    name: str
    configs: list[Any]
    copies: int
    call: Callable[[Any, int], object]
    """Does the work with a configuration and the copy of the given number."""
    chosen: Any
    """The configuration that the engine uses at this size; it is timed too."""
    prepare: Callable[[], object] = lambda: None
    """Called before each configuration."""

    @property
    def candidates(self) -> list[Any]:
        """All configurations, the chosen one first and each once."""
        return list({str(config): config for config in (self.chosen, *self.configs)}.values())


@dataclass(frozen=True, slots=True)
class Settings:
    """Values for constants of a module."""

    module: ModuleType
    values: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        return " ".join(f"{name.strip('_')}={value}" for name, value in self.values)


def combined(module: ModuleType, **values: Sequence[Any]) -> list[Settings]:
    """Every combination of the named constants' values."""
    return [Settings(module, tuple(zip(values, each, strict=True))) for each in product(*values.values())]


def one_by_one(module: ModuleType, **values: Sequence[Any]) -> list[Settings]:
    """The named constants as they are but for one, which takes each of its values."""
    chosen = {name: getattr(module, name) for name in values}
    return [
        Settings(module, tuple((chosen | {name: value}).items())) for name, each in values.items() for value in each
    ]


def settings_sweep(
    name: str,
    settings: list[Settings],
    copies: int,
    call: Callable[[int], object],
    prepare: Callable[[], object] = lambda: None,
    **fixed: Any,
) -> Sweep:
    """A sweep over constants.

    Args:
        name: Of the kernel, with its size.
        settings: Candidates, all of the same constants.
        copies: Of the inputs.
        call: Does the work with the copy of the given number.
        prepare: See `Sweep`.
        **fixed: Constants that hold another value than the module's in the chosen configuration: what decides
            between two kernels, where only one of them is looked at.

    Returns:
        The sweep.
    """
    module = settings[0].module
    chosen = tuple((key, fixed.get(key, getattr(module, key))) for key, _ in settings[0].values)

    def with_settings(config: Settings, copy: int) -> object:
        with patch.multiple(module, **dict(config.values)):
            return call(copy)

    return Sweep(name, list(settings), copies, with_settings, Settings(module, chosen), prepare)
