"""The file of the compiled decode step: where it is, and how it is built.

Owns its source's flags and its place; `compiled_step` loads it. Knows no torch, so that an image's first stage and make
can run this file before anything is installed. Nothing is compiled when the service runs.

    python -m service.engine.cpu.step_library

builds it next to this module, with `cc` or the compiler that is named. A wheel has the source, so this works there too.
`--where-useful` is for make: it builds where this processor gains from it and a compiler is found, and never fails.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("decode_step.c")
LIBRARY = SOURCE.with_suffix(".so")
FLAGS = (
    *("-O3", "-Wall", "-Wextra", "-Werror", "-march=x86-64-v4", "-mavx512bf16", "-ffp-contract=off"),
    *("-shared", "-fPIC"),
)
PROCESSORS = {"x86_64", "amd64"}
"""For which it can be built, whatever the one that builds it can do."""
NEEDED = {"avx512_bf16", "amx_bf16"}
"""Without tiles the service does not round canvases, so that it has no steps for the library."""
CPU_INFO = Path("/proc/cpuinfo")


def build(path: Path = LIBRARY, compiler: str = "cc") -> None:
    """Compile the library.

    Args:
        path: Its file; replaced as a whole.
        compiler: A C compiler that takes GCC's flags.

    Raises:
        FileNotFoundError: There is no such compiler.
        CalledProcessError: It failed; it has said why.
    """
    partial = path.with_suffix(".partial")
    command = [compiler, *FLAGS, "-o", str(partial), str(SOURCE), "-lm"]
    subprocess.run(command, check=True)  # noqa: S603 - the compiler that the caller names
    partial.replace(path)


def gains_here() -> bool:
    """Whether this machine's processor has the instructions, as Linux tells."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return set(flags.split()) >= NEEDED


def build_where_useful(path: Path = LIBRARY, compiler: str = "cc") -> str:
    """Build the library if this processor gains from it and it is not newer than its source.

    Args:
        path: Its file.
        compiler: As for `build`.

    Returns:
        A line to print; empty if there is nothing to say.
    """
    if not gains_here() or (path.is_file() and path.stat().st_mtime > SOURCE.stat().st_mtime):
        return ""
    if shutil.which(compiler) is None:
        return "nano is slower on this processor than it could be: there is no C compiler for its decode step."
    try:
        build(path, compiler)
    except (OSError, subprocess.CalledProcessError):
        return "nano is slower on this processor than it could be: its decode step did not compile."
    return "Compiled nano's decode step for this processor."


def main(words: list[str]) -> int:
    """Build it as the command line says, and return the exit status."""
    parser = argparse.ArgumentParser(description="Build the compiled decode step.")
    parser.add_argument("compiler", nargs="?", default="cc", help="a C compiler that takes GCC's flags")
    parser.add_argument("--where-useful", action="store_true", help="build if this processor gains; never fail")
    arguments = parser.parse_args(words)
    if arguments.where_useful:
        said = build_where_useful(compiler=arguments.compiler)
        if said:
            sys.stdout.write(f"{said}\n")
        return 0
    if platform.machine().lower() not in PROCESSORS:
        parser.exit(1, f"the decode step is for x86-64, not for {platform.machine()}\n")
    try:
        build(compiler=arguments.compiler)
    except FileNotFoundError:
        parser.exit(1, f"there is no C compiler {arguments.compiler}\n")
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
