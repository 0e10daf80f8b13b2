"""Loading compiled code for CPUs: the first library that was built and that the processor can run.

`step_library` builds them, and says for which processors each is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from service.engine.cpu.step_library import Library


class NoLibraryError(Exception):
    """What a library would compute is left to torch; says why in a few words."""


def load_first(libraries: Sequence[Library], version_function: str, version: int) -> ctypes.CDLL:
    """Load the first library that this processor can run.

    Args:
        libraries: The best first.
        version_function: Name of the function that tells the version of the others.
        version: The only one to be loaded.

    Returns:
        Its functions.

    Raises:
        NoLibraryError: None was built, or it is another version's, or has no place on this processor; says which.
    """
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    fit = [each.path for each in libraries if all(capabilities.get(name) for name in each.capabilities)]
    if not fit:
        raise NoLibraryError("no AVX2")
    path = next((each for each in fit if each.is_file()), None)
    if path is None:
        raise NoLibraryError("not built")
    try:
        library = ctypes.CDLL(str(path))
        found = getattr(library, version_function)()
    except (OSError, AttributeError):
        raise NoLibraryError("the library cannot be loaded") from None
    if found != version:
        raise NoLibraryError("the library is another version's")
    return library
