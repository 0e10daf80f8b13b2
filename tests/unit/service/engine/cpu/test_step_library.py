"""Building the compiled step: where, when, and what is said."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys

import pytest

from service.engine.cpu import step_library

USEFUL = "flags : fpu avx512_bf16 amx_bf16 amx_tile\n"
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


@needs_compiler
def test_it_is_built_where_that_is_useful_and_again_only_if_its_source_is_newer(tmp_path, processor, monkeypatch):
    source, path = tmp_path / "decode_step.c", tmp_path / "decode_step.so"
    source.write_bytes(step_library.SOURCE.read_bytes())
    os.utime(source, (1000, 1000))
    monkeypatch.setattr(step_library, "SOURCE", source)
    processor(USEFUL)
    assert step_library.build_where_useful(path).startswith("Compiled")
    os.utime(path, (2000, 2000))
    assert step_library.build_where_useful(path) == ""
    assert path.stat().st_mtime == 2000
    os.utime(source, (3000, 3000))
    assert step_library.build_where_useful(path).startswith("Compiled")


@pytest.mark.parametrize("said", ["flags : fpu avx512_bf16\n", "Features : fp asimd bf16\n", ""])
def test_nothing_is_built_or_said_where_nothing_is_gained(said, tmp_path, processor):
    processor(said)
    assert step_library.build_where_useful(tmp_path / "decode_step.so") == ""
    assert not (tmp_path / "decode_step.so").exists()


def test_a_system_that_tells_nothing_of_its_processor_builds_none(tmp_path, monkeypatch):
    monkeypatch.setattr(step_library, "CPU_INFO", tmp_path / "none")
    assert step_library.build_where_useful(tmp_path / "decode_step.so") == ""


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_that_works_it_says_so_and_does_not_fail(compiler, tmp_path, processor):
    processor(USEFUL)
    assert "slower" in step_library.build_where_useful(tmp_path / "decode_step.so", compiler)
    assert not (tmp_path / "decode_step.so").exists()


@needs_compiler
def test_a_build_that_fails_leaves_no_library(tmp_path, monkeypatch):
    source = tmp_path / "decode_step.c"
    source.write_text("this is not C\n")
    monkeypatch.setattr(step_library, "SOURCE", source)
    with pytest.raises(subprocess.CalledProcessError):
        step_library.build(tmp_path / "decode_step.so")
    assert not (tmp_path / "decode_step.so").exists()


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
def test_an_images_stage_builds_it_with_these_two_files_and_no_package(tmp_path):
    for each in (step_library.SOURCE, step_library.__file__):
        shutil.copy(each, tmp_path)
    command = [sys.executable, "-I", "-S", str(tmp_path / "step_library.py")]
    subprocess.run(command, check=True, cwd="/", timeout=120)
    assert (tmp_path / "decode_step.so").is_file()
