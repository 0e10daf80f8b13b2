"""Marks tests that read with the shipped model."""

from __future__ import annotations

import pytest

from tests.support.programs import ROOT

NANO = ROOT / "shared" / "nano"

needs_nano = pytest.mark.skipif(
    not (NANO / "model.safetensors").is_file(), reason="the weights of shared/nano are not there yet"
)
