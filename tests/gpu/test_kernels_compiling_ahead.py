"""Compiling ahead: what is launched within compiles and does not run."""

import pytest
import torch

from tests.support.interpreter import DEVICE, HAS_GPU, import_kernels

pytestmark = [pytest.mark.gpu] if HAS_GPU else []

launch = import_kernels("service.engine.kernels.triton.launch")
elementwise = import_kernels("service.engine.kernels.triton.vision_elementwise")


def test_nothing_runs_while_compiling_ahead():
    x = torch.linspace(-3, 3, 1000, device=DEVICE)
    before = x.clone()
    with launch.compiling_ahead(2):
        elementwise.activate(x)
    assert torch.equal(x, before)
    elementwise.activate(x)
    assert torch.allclose(x, before * torch.sigmoid(1.702 * before), atol=1e-6)


def test_an_error_within_ends_it():
    x = torch.ones(8, device=DEVICE)
    with pytest.raises(RuntimeError, match="on the way"), launch.compiling_ahead(1):
        raise RuntimeError("on the way")
    elementwise.activate(x)
    assert not torch.equal(x, torch.ones_like(x))


class _Kernel:
    """Counts what is asked of it."""

    def __init__(self):
        self.rehearsed, self.launched = [], []

    def run(self, *arguments, grid, warmup, **named):
        assert warmup
        self.rehearsed.append((arguments, grid, named))

    def __getitem__(self, grid):
        return lambda *arguments, **named: self.launched.append((arguments, grid, named))


def test_each_kind_is_compiled_once():
    kernel = _Kernel()
    x = torch.zeros(64, dtype=torch.float32)
    with launch.compiling_ahead(1):
        for tensor in (x, x.clone(), x[1:], x.double()):  # the third begins elsewhere, the fourth is of another type
            launch.launch(kernel, (1,), tensor, 5, WIDTH=64)
        launch.launch(kernel, (1,), x, 5, WIDTH=32)
        launch.launch(kernel, (1,), x, 6, WIDTH=32)
    assert len(kernel.rehearsed) == 5
    assert not kernel.launched
    launch.launch(kernel, (1,), x, 5, WIDTH=64)
    assert len(kernel.launched) == 1


@pytest.mark.skipif(not HAS_GPU, reason="the interpreter compiles nothing")
def test_what_was_compiled_ahead_is_not_compiled_again():
    import triton

    x = torch.ones(1000, device=DEVICE, dtype=torch.float64)
    elementwise._quick_gelu_kernel.device_caches.clear()
    compiled = []
    with launch.compiling_ahead(2):
        elementwise.activate(x)
    triton.knobs.runtime.jit_post_compile_hook = lambda **found: compiled.append(found)
    try:
        elementwise.activate(x)
        torch.cuda.synchronize()
    finally:
        triton.knobs.runtime.jit_post_compile_hook = None
    assert not compiled
