"""Which libraries this machine can build and run."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence

import torch

from service.engine.cpu import step_library
from service.engine.cpu.step_library import Library

HAS_COMPILER = shutil.which("cc") is not None and platform.machine() in step_library.PROCESSORS


def runnable(libraries: Sequence[Library]) -> list[Library]:
    """Those of some, in their order."""
    capabilities = torch.cpu.get_capabilities() if HAS_COMPILER else {}
    return [each for each in libraries if HAS_COMPILER and all(capabilities.get(name) for name in each.capabilities)]
