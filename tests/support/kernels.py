"""Where the kernels' tests run: on the GPU if there is one, else in Triton's interpreter, else not at all."""

import importlib.util
import os
from types import ModuleType

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
GPU_MARK = [pytest.mark.gpu] if HAS_GPU else []
"""So that the same tests belong to the default run on a CPU and to the GPU's run on a GPU."""


def kernel_set(name: str) -> ModuleType:
    """`reference` or `fused`."""
    if name == "reference":
        from service.engine.kernels import reference

        return reference
    if importlib.util.find_spec("triton") is None:
        pytest.skip("no triton")
    if not HAS_GPU:
        # Read when a kernel is declared, hence before the import.
        os.environ["TRITON_INTERPRET"] = "1"
    fused: ModuleType = pytest.importorskip("service.engine.kernels.fused")
    return fused
