"""Kernels are interpreted where there is no GPU; Triton reads that when it is imported, so before any test is."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.support.kernels import kernel_set


@pytest.fixture
def fused():
    return kernel_set("fused")


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that nobody wrote holds what is no number, or an absurd number; chance begins anew."""
    torch.manual_seed(0)
    empty = torch.empty

    def poison(tensor):
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(-77)

    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: poison(empty(*args, **kwargs)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: poison(torch.zeros_like(*args, **kwargs)))
