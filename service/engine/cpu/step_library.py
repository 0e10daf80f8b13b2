"""The files of compiled code for CPUs: where they are, for which processors, and how they are built.

Owns their sources' flags and their places; `compiled_step` and `canvas_library` load them. Knows no torch, so that an
image's first stage and make can run this file before anything is installed. Nothing is compiled when the service runs.

    python -m service.engine.cpu.step_library

builds all next to this module, with `cc` or the compiler that is named. A wheel has the sources, so this works there
too. `--where-useful` is for make: it builds what this processor gains from if a compiler is found, and never fails.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Library:
    """A library, its sources and for which processors it is."""

    name: str
    sources: tuple[Path, ...]
    flags: tuple[str, ...]
    needed: frozenset[str]
    """As Linux names what a processor can do."""
    capabilities: tuple[str, ...]
    """As torch names it."""

    folder: Path = FOLDER

    @property
    def path(self) -> Path:
        """Its file."""
        return self.folder / f"{self.name}.so"


FLAGS = ("-O3", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
TILES = "amx_bf16"
_STEP_SOURCES = (FOLDER / "decode_step.c",)
DECODE_STEPS = (
    Library(
        "decode_step_avx512vnni",
        _STEP_SOURCES,
        ("-march=x86-64-v4", "-mavx512vnni", "-ffp-contract=off"),
        frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"}),
        ("avx512_f", "avx512_bw", "avx512_cd", "avx512_dq", "avx512_vl", "avx512_vnni"),
    ),
    Library(
        "decode_step_avx512",
        _STEP_SOURCES,
        ("-march=x86-64-v4", "-ffp-contract=off"),
        frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
        ("avx512_f", "avx512_bw", "avx512_cd", "avx512_dq", "avx512_vl"),
    ),
    Library(
        "decode_step_avx2",
        _STEP_SOURCES,
        ("-march=x86-64-v3", "-ffp-contract=off"),
        frozenset({"avx2", "fma", "bmi2"}),
        ("avx2", "fma3", "bmi2"),
    ),
)
"""The best first."""
_CANVAS_SOURCES = (FOLDER / "canvas_encoder.c", FOLDER / "canvas_prompts.c")
CANVASES = (
    Library(
        "canvases_avx512",
        _CANVAS_SOURCES,
        ("-march=x86-64-v4", "-mavx512vnni"),
        frozenset({"avx512_vnni", "avx512bw", "avx512dq", "avx512vl"}),
        ("avx512_vnni", "avx512_bw", "avx512_dq", "avx512_vl"),
    ),
    Library(
        "canvases_avxvnni",
        _CANVAS_SOURCES,
        ("-march=x86-64-v3", "-mavxvnni"),
        frozenset({"avx_vnni", "avx2", "fma"}),
        ("avx_vnni", "avx2", "fma3"),
    ),
    Library(
        "canvases_avx2",
        _CANVAS_SOURCES,
        ("-march=x86-64-v3",),
        frozenset({"avx2", "fma", "bmi2"}),
        ("avx2", "fma3", "bmi2"),
    ),
)
"""The best first. With tiles torch reads canvases in bfloat16, so none of these is built."""
PROCESSORS = {"x86_64", "amd64"}
"""For which it can be built, whatever the one that builds it can do."""
CPU_INFO = Path("/proc/cpuinfo")


def build(library: Library, compiler: str = "cc") -> None:
    """Compile a library.

    Args:
        library: Which; its file is replaced as a whole.
        compiler: A C compiler that takes GCC's flags.

    Raises:
        FileNotFoundError: There is no such compiler.
        CalledProcessError: It failed; it has said why.
    """
    partial = library.path.with_suffix(".partial")
    command = [compiler, *FLAGS, *library.flags, "-o", str(partial), *map(str, library.sources), "-lm"]
    subprocess.run(command, check=True)  # noqa: S603 - the compiler that the caller names
    partial.replace(library.path)


def useful_here() -> tuple[Library, ...]:
    """What this machine's processor gains from, as Linux tells."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    flags: Set[str] = set(next((line for line in lines if line.startswith("flags")), "").split())
    kinds = (DECODE_STEPS,) if TILES in flags else (DECODE_STEPS, CANVASES)
    best = (next((each for each in kind if flags >= each.needed), None) for kind in kinds)
    return tuple(each for each in best if each)


def build_where_useful(compiler: str = "cc") -> str:
    """Build what this processor gains from and is not newer than its sources.

    Args:
        compiler: As for `build`.

    Returns:
        A line to print; empty if there is nothing to say.
    """
    outdated = [each for each in useful_here() if not _is_new(each)]
    if not outdated:
        return ""
    if shutil.which(compiler) is None:
        return "nano is slower on this processor than it could be: there is no C compiler for it."
    try:
        for each in outdated:
            build(each, compiler)
    except (OSError, subprocess.CalledProcessError):
        return "nano is slower on this processor than it could be: its C code did not compile."
    return "Compiled nano's C code for this processor."


def _is_new(library: Library) -> bool:
    """Whether a library is newer than its sources and all headers."""
    if not library.path.is_file():
        return False
    headers = (each for source in library.sources for each in source.parent.glob("*.h"))
    made = library.path.stat().st_mtime
    return all(made > each.stat().st_mtime for each in (*library.sources, *headers))


def main(words: list[str]) -> int:
    """Build what the command line says, and return the exit status."""
    parser = argparse.ArgumentParser(description="Build the compiled code for CPUs.")
    parser.add_argument("compiler", nargs="?", default="cc", help="a C compiler that takes GCC's flags")
    parser.add_argument("--where-useful", action="store_true", help="build what this processor gains from; never fail")
    arguments = parser.parse_args(words)
    if arguments.where_useful:
        said = build_where_useful(arguments.compiler)
        if said:
            sys.stdout.write(f"{said}\n")
        return 0
    if platform.machine().lower() not in PROCESSORS:
        parser.exit(1, f"the compiled code is for x86-64, not for {platform.machine()}\n")
    try:
        for each in (*DECODE_STEPS, *CANVASES):
            build(each, arguments.compiler)
    except FileNotFoundError:
        parser.exit(1, f"there is no C compiler {arguments.compiler}\n")
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
