"""Triton's kernels on a machine without a GPU: interpreted, and what the interpreter needs for that."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
HALF = torch.bfloat16 if HAS_GPU else torch.float16
"""The 16-bit type to test in; the interpreter multiplies bf16 as if it were integers."""


def import_kernels(name: str) -> ModuleType:
    """Import a module of kernels, or skip the test where Triton is missing."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("no triton", allow_module_level=True)
    if not HAS_GPU:
        if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("something imported triton before it was told to interpret", allow_module_level=True)
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported and when a kernel is declared
        _mend_bounds()
        _mend_rounding()
    return importlib.import_module(name)


def _mend_bounds() -> None:
    """Let kernels use arguments as loop bounds: numpy 2.4 no longer makes an integer of an array of one."""
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")  # no stubs where triton is missing

    original = interpreter._patch_lang_tensor
    if getattr(original, "mended", False):
        return

    def patched(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    patched.mended = True  # type: ignore[attr-defined] # a function's attribute
    interpreter._patch_lang_tensor = patched


def _mend_rounding() -> None:
    """Let 8-bit floats be rounded as a device does: Triton 3.6 halves what is rounded up to a power of two."""
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    tl: Any = importlib.import_module("triton.language")

    original = interpreter.InterpreterBuilder.create_fp_to_fp
    if getattr(original, "mended", False):
        return

    def rounded(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        if target.scalar != tl.float8e4nv:
            return original(self, source, target, rounding)
        values = torch.from_numpy(np.ascontiguousarray(source.data)).to(torch.float8_e4m3fn)
        return interpreter.TensorHandle(values.view(torch.uint8).numpy(), target.scalar)

    rounded.mended = True  # type: ignore[attr-defined] # a function's attribute
    interpreter.InterpreterBuilder.create_fp_to_fp = rounded


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """||out - reference|| / ||reference||, in float64."""
    out, reference = out.detach().double().cpu(), reference.detach().double().cpu()
    assert bool(out.isfinite().all())
    return float((out - reference).norm() / reference.norm())
