"""Building the compiled code for CPUs: where, when, and what is said."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from service.engine.cpu import step_library
from service.engine.cpu.step_library import CANVASES, DECODE_STEPS, FOLDER, build, useful_here

LIBRARIES = (*DECODE_STEPS, *CANVASES)
AVX512 = "avx512f avx512bw avx512cd avx512dq avx512vl"
WITH_TILES = f"flags : fpu avx2 fma bmi2 {AVX512} avx512_bf16 avx512_vnni amx_bf16 amx_tile\n"
needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None or platform.machine() not in step_library.PROCESSORS,
    reason="needs a C compiler for x86-64",
)


@pytest.fixture
def processor(tmp_path, monkeypatch):
    """Sets what Linux says of it."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(step_library, "CPU_INFO", path)

    def say(text: str) -> None:
        path.write_text(text, encoding="utf-8")

    return say


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the decode step is built from a copy of its source."""
    source = tmp_path / "decode_step.c"
    for each in (*DECODE_STEPS[0].sources, *FOLDER.glob("*.h")):
        shutil.copy(each, tmp_path)
    copied = tuple(replace(each, sources=(source,), folder=tmp_path) for each in DECODE_STEPS)
    monkeypatch.setattr(step_library, "DECODE_STEPS", copied)
    return tmp_path


@needs_compiler
def test_it_is_built_where_that_is_useful_and_again_only_if_a_source_is_newer(folder, processor):
    source, header, path = folder / "decode_step.c", folder / "lanes.h", folder / "decode_step_avx512vnni.so"
    for each in (source, *folder.glob("*.h")):
        os.utime(each, (1000, 1000))
    processor(WITH_TILES)
    assert step_library.build_where_useful().startswith("Compiled")
    os.utime(path, (2000, 2000))
    assert step_library.build_where_useful() == ""
    assert path.stat().st_mtime == 2000
    os.utime(source, (3000, 3000))
    assert step_library.build_where_useful().startswith("Compiled")
    header.touch()
    os.utime(path, (4000, 4000))
    assert step_library.build_where_useful().startswith("Compiled")


@pytest.mark.parametrize(
    ("said", "names"),
    [
        (WITH_TILES, ["decode_step_avx512vnni"]),
        (WITH_TILES.replace("amx_bf16", ""), ["decode_step_avx512vnni", "canvases_avx512"]),
        (f"flags : avx2 fma bmi2 {AVX512}\n", ["decode_step_avx512", "canvases_avx2"]),
        ("flags : avx2 fma bmi2 avx_vnni\n", ["decode_step_avx2", "canvases_avxvnni"]),
        ("flags : avx2 fma bmi2\n", ["decode_step_avx2", "canvases_avx2"]),
        ("flags : avx2 fma bmi2 avx512f avx512_vnni\n", ["decode_step_avx2", "canvases_avx2"]),
        ("flags : avx sse2\n", []),
        ("Features : fp asimd bf16\n", []),
        ("", []),
    ],
)
def test_what_a_processor_gains_from(said, names, processor):
    processor(said)
    assert [each.name for each in useful_here()] == names


def test_nothing_is_built_or_said_where_nothing_is_gained(processor, monkeypatch):
    monkeypatch.setattr(step_library, "build", None)
    processor("Features : fp asimd bf16\n")
    assert step_library.build_where_useful() == ""


def test_a_system_that_tells_nothing_of_its_processor_builds_none(tmp_path, monkeypatch):
    monkeypatch.setattr(step_library, "CPU_INFO", tmp_path / "none")
    assert step_library.build_where_useful() == ""


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_that_works_it_says_so_and_does_not_fail(compiler, folder, processor):
    processor(WITH_TILES)
    assert "slower" in step_library.build_where_useful(compiler)
    assert not list(folder.glob("*.so"))


@needs_compiler
def test_a_build_that_fails_leaves_no_library(tmp_path):
    source = tmp_path / "decode_step.c"
    source.write_text("this is not C\n")
    library = replace(DECODE_STEPS[0], sources=(source,), folder=tmp_path)
    with pytest.raises(subprocess.CalledProcessError):
        build(library)
    assert not library.path.exists()


def test_the_command_names_a_compiler_that_is_missing(capsys):
    with pytest.raises(SystemExit) as ended:
        step_library.main(["no-such-compiler"])
    assert ended.value.code == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_another_processor_has_no_library(monkeypatch, capsys):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(SystemExit) as ended:
        step_library.main([])
    assert ended.value.code == 1
    assert "aarch64" in capsys.readouterr().err


@needs_compiler
def test_an_images_stage_builds_all_with_these_files_and_no_package(tmp_path):
    for each in (*FOLDER.glob("*.c"), *FOLDER.glob("*.h"), FOLDER / "step_library.py"):
        shutil.copy(each, tmp_path)
    command = [sys.executable, "-I", "-S", str(tmp_path / "step_library.py")]
    subprocess.run(command, check=True, cwd="/", timeout=120)
    assert {each.name for each in tmp_path.glob("*.so")} == {each.path.name for each in LIBRARIES}
