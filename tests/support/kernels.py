"""Where the kernels' tests run (the GPU if there is one, else Triton's interpreter, else nowhere) and how they compare.

The interpreter of Triton 3.6 needs help: with NumPy 2.4 it cannot read a loop's bounds, it cuts float32 to bf16 instead
of rounding, and it multiplies matrices of bf16 by their bits.
"""

import importlib.util
import os
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
GPU_MARK = [pytest.mark.gpu] if HAS_GPU else []
"""So that the same tests belong to the default run on a CPU and to the GPU's run on a GPU."""

BF16, F32 = torch.bfloat16, torch.float32
TOLERANCE = {BF16: 1e-2, F32: 1e-5}
"""Relative error by the type of what is compared."""


def noise(*shape: int, dtype: torch.dtype = F32, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, device=DEVICE) * scale).to(dtype)


def assert_near(out: torch.Tensor, ref: torch.Tensor, tolerance: float | None = None) -> None:
    assert out.shape == ref.shape
    assert out.dtype == ref.dtype
    error = (out.double() - ref.double()).norm() / ref.double().norm().clamp(min=1e-30)
    assert float(error) < (TOLERANCE[ref.dtype] if tolerance is None else tolerance)


def kernel_set(name: str) -> ModuleType:
    """`reference` or `fused`."""
    if name == "reference":
        from service.engine.kernels.reference import decoder as reference

        return reference
    if importlib.util.find_spec("triton") is None:
        pytest.skip("no triton")
    if not HAS_GPU:
        # Read when a kernel is declared, hence before the import.
        os.environ["TRITON_INTERPRET"] = "1"
        _help_interpreter()
    from service.engine.kernels.triton import decoder as fused

    return fused


def _help_interpreter() -> None:
    import triton.language as tl
    from triton.runtime import interpreter

    if getattr(interpreter, "is_helped", False):
        return
    interpreter.is_helped = True
    builder, patch = interpreter.InterpreterBuilder, interpreter._patch_lang_tensor
    cast, dot = builder.cast_impl, builder.create_dot

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def wide(handle: Any) -> Any:
        data = (handle.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(data, tl.float32)

    def round_to(self: Any, source: Any, target: Any) -> Any:
        if source.dtype.scalar == tl.bfloat16:
            return cast(self, wide(source), target)
        if target.scalar == tl.bfloat16:
            values = torch.from_numpy(np.ascontiguousarray(source.data).astype(np.float32))
            bits = values.bfloat16().view(torch.int16).numpy().view(np.uint16).reshape(source.data.shape)
            return interpreter.TensorHandle(bits, tl.bfloat16)
        return cast(self, source, target)

    def wide_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        is_narrow = a.dtype.scalar == tl.bfloat16
        return dot(self, wide(a) if is_narrow else a, wide(b) if is_narrow else b, *rest)

    interpreter._patch_lang_tensor = patch_tensor
    builder.cast_impl, builder.create_dot = round_to, wide_dot
    for name in ("create_fp_ext", "create_fp_trunc", "create_fp_to_si", "create_fp_to_ui"):
        setattr(builder, name, round_to)
