"""Which library for canvases is loaded, and the service with one and without."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from service.engine.cpu import canvas_library, canvas_reader, runner, step_library
from service.engine.cpu.canvas_library import load
from service.engine.cpu.compiled_step import NoLibraryError
from service.engine.cpu.step_library import CANVASES
from service.engine.factory import make_engine
from tests.support.nano import needs_nano
from tests.unit.service.engine.cpu.compiled_canvases import RUNNABLE, built, canvas_model
from tests.unit.service.engine.cpu.test_bands import LIMITS, LINES, checkpoint, page_of, read, words

needs_library = pytest.mark.skipif(not RUNNABLE, reason="needs a C compiler and a processor with AVX2")
WANTED = replace(LIMITS, rounds_canvases=True)


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """As on a processor without tiles, with the best library."""
    library = built(RUNNABLE[0], tmp_path)
    monkeypatch.setattr(runner, "has_tiles", lambda: False)
    monkeypatch.setattr(canvas_reader, "load", lambda: library)


@pytest.fixture
def capable(monkeypatch):
    """Sets what torch says of the processor."""

    def say(*names: str) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True), raising=False)

    return say


def test_what_was_not_built_is_not_loaded(tmp_path, capable):
    capable(*CANVASES[0].capabilities)
    with pytest.raises(NoLibraryError, match="not built"):
        load([replace(each, folder=tmp_path) for each in CANVASES])


def test_a_processor_without_avx2_loads_none(capable):
    capable("avx")
    with pytest.raises(NoLibraryError, match="AVX2"):
        load()


def test_a_file_that_is_no_library_is_not_loaded(tmp_path, capable):
    capable(*CANVASES[2].capabilities)
    library = replace(CANVASES[2], folder=tmp_path)
    library.path.write_bytes(b"no library")
    with pytest.raises(NoLibraryError, match="cannot be loaded"):
        load([library])


@needs_library
def test_another_versions_library_is_not_called(tmp_path, monkeypatch):
    library = replace(RUNNABLE[-1], folder=tmp_path)
    step_library.build(library)
    monkeypatch.setattr(canvas_library, "VERSION", canvas_library.VERSION + 1)
    with pytest.raises(NoLibraryError, match="another version"):
        load([library])


@needs_library
def test_the_first_that_was_built_and_fits_is_loaded(tmp_path, capable):
    libraries = [replace(each, folder=tmp_path) for each in RUNNABLE]
    step_library.build(libraries[-1])
    assert load(libraries)._name == str(libraries[-1].path)
    step_library.build(libraries[0])
    assert load(libraries)._name == str(libraries[0].path)
    capable(*libraries[-1].capabilities)
    assert load(libraries)._name == str(libraries[-1].path)


@needs_library
def test_a_model_in_bfloat16_is_refused(compiled):
    with pytest.raises(NoLibraryError, match="float32"):
        canvas_reader.canvas_reader(canvas_model().bfloat16(), 64)


@needs_nano
@needs_library
def test_nano_reads_the_same_from_compiled_canvases(compiled):
    pages = [page_of(*LINES), page_of(*LINES[:2], height=80), page_of(LINES[3], height=40)]
    found, heights = read(WANTED, pages)
    # The model itself encodes the view of padding alone.
    assert heights == [640]
    exact, _ = read(LIMITS, pages)
    assert words(found) == words(exact)
    for one, other in zip(found, exact, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=0.002)


@needs_nano
@needs_library
def test_whole_and_compiled_pages_in_one_batch_do_not_change_each_other(compiled):
    whole, canvas = replace(page_of(*LINES), is_canvas=False), page_of(*LINES[:2], height=80)
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
