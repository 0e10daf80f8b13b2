"""Kernels are interpreted where there is no GPU. Triton reads this when it is imported, so it is said before any test is."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
