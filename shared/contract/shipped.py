"""The model in the package, by the name that it has in a checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import shared.nano

SHIPPED_MODEL: Final = "shared/nano"
"""The default of every command, and what documents call it."""


def local_model(model: str | Path) -> str | Path:
    """A model's name; for the shipped model outside of a checkout, its folder in the package."""
    if str(model) == SHIPPED_MODEL and not Path(model).is_dir():
        return Path(shared.nano.__path__[0])
    return model
