"""Which library for canvases is loaded, and the service with one and without."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.engine.cpu import canvas_reader, compiled_decoder, runner
from service.engine.cpu.loaded_library import NoLibraryError
from service.engine.factory import make_engine
from tests.support.nano import needs_nano
from tests.unit.service.engine.cpu.compiled_canvases import RUNNABLE, built, canvas_model
from tests.unit.service.engine.cpu.test_bands import (
    LIMITS,
    LINES,
    check_same_reading,
    checkpoint,
    page_of,
    page_of_tiles,
    read,
)

needs_library = pytest.mark.skipif(not RUNNABLE, reason="needs a C compiler and a processor with AVX2")
WANTED = replace(LIMITS, rounds_canvases=True)


@pytest.fixture(autouse=True)
def no_compiled_steps(monkeypatch):
    """Whether or not this tree has them built."""

    def refuse():
        raise NoLibraryError("not built")

    monkeypatch.setattr(compiled_decoder, "load", refuse)


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """As on a processor without tiles, with the best library."""
    library = built(RUNNABLE[0], tmp_path)
    monkeypatch.setattr(runner, "has_tiles", lambda: False)
    monkeypatch.setattr(canvas_reader, "load", lambda: library)


@needs_library
def test_a_model_in_bfloat16_is_refused(compiled):
    with pytest.raises(NoLibraryError, match="float32"):
        canvas_reader.canvas_reader(canvas_model().bfloat16(), 64)


@needs_nano
@needs_library
def test_nano_reads_the_same_from_compiled_canvases(compiled):
    check_same_reading(WANTED, tolerance=0.002)


@needs_nano
@needs_library
def test_whole_and_compiled_pages_in_one_batch_do_not_change_each_other(compiled):
    whole, canvas = page_of_tiles(*LINES), page_of(*LINES[:2], height=80)
    [exact], _ = read(LIMITS, [whole])
    [alone], _ = read(WANTED, [canvas])
    together, _ = read(WANTED, [whole, canvas, whole])
    assert [each.text for each in together] == [exact.text, alone.text, exact.text]


@needs_nano
@needs_library
@pytest.mark.parametrize(
    ("limits", "tiles", "said"),
    [
        (WANTED, False, "compiled"),
        (LIMITS, False, "torch"),
        (replace(WANTED, skips_padding=False), False, "torch"),
        (WANTED, True, "bfloat16"),
    ],
)
def test_the_engine_says_how_it_reads_canvases(limits, tiles, said, compiled, monkeypatch):
    monkeypatch.setattr(runner, "has_tiles", lambda: tiles)
    assert make_engine(checkpoint(), limits).info.canvases == said


@needs_nano
def test_without_a_library_canvases_are_torchs(monkeypatch):
    def refuse():
        raise NoLibraryError("not built")

    monkeypatch.setattr(runner, "has_tiles", lambda: False)
    monkeypatch.setattr(canvas_reader, "load", refuse)
    engine = make_engine(checkpoint(), WANTED)
    assert engine.info.canvases == "torch (not built)"
    [found], _ = read(WANTED, [page_of(*LINES)])
    [exact], _ = read(LIMITS, [page_of(*LINES)])
    assert (found.text, found.confidence) == (exact.text, exact.confidence)
