"""Kernels are interpreted where there is no GPU; Triton reads that when it is imported, so before any test is."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
