"""Tesseract as a reader: one process per page, a few at a time.

It gets the page's layout, as users would give it. Its time is that of the whole process, including the start, on one
thread.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from trainer.evaluation.samples import Layout, Sample
from trainer.evaluation.scores import Reading
from trainer.reading.protocol import ReaderError

PAGE_SEGMENTATION = {Layout.LINE: 7, Layout.BLOCK: 6, Layout.PAGE: 3}
"""Tesseract's `--psm`: one line, one block, automatic segmentation of a page."""
TIMEOUT_S = 120.0


class TesseractReader:
    """Reads with the `tesseract` program.

    Args:
        environment: Environment of its processes; each is also limited to one thread.
        processes: Pages read at once.
        language: Value of `-l`, such as `eng+deu`.
        program: Name or path of the executable.

    Raises:
        ReaderError: There is no such program.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        processes: int = 2,
        language: str = "eng",
        program: str = "tesseract",
    ) -> None:
        found = shutil.which(program, path=environment.get("PATH"))
        if found is None:
            raise ReaderError(f"there is no program {program}; on Debian: apt-get install tesseract-ocr")
        self._program = found
        # Without the limit each process starts four threads, which compete for the cores and slow each other down.
        self._environment = {**environment, "OMP_THREAD_LIMIT": "1"}
        self._processes = processes
        self._language = language

    @property
    def name(self) -> str:
        """Name and version as tables show them."""
        return f"Tesseract {self.version}"

    @property
    def details(self) -> Mapping[str, str]:
        """Version and options."""
        modes = ", ".join(f"{number} {layout.value}" for layout, number in PAGE_SEGMENTATION.items())
        return {"version": self.version, "language": self._language, "psm": f"({modes})", "threads": "1"}

    @property
    def version(self) -> str:
        """The program's version, such as 5.3.0.

        Raises:
            ReaderError: The program does not print a version.
        """
        output = self._run(["--version"])
        match = re.search(r"tesseract v?(\S+)", output)
        if match is None:
            raise ReaderError(f"{self._program} does not tell its version")
        return match.group(1)

    def read(self, samples: Sequence[Sample]) -> Iterator[tuple[int, Reading]]:
        """Read pages, as many at once as there are processes.

        If the program fails or hangs on a page, its reading is empty and unfinished.
        """
        with ThreadPoolExecutor(self._processes) as pool:
            tasks = {pool.submit(self._read_one, sample): index for index, sample in enumerate(samples)}
            for task in as_completed(tasks):
                yield tasks[task], task.result()

    def _read_one(self, sample: Sample) -> Reading:
        mode = str(PAGE_SEGMENTATION[sample.layout])
        start = time.perf_counter()
        try:
            text = self._run([str(sample.image_path), "-", "--psm", mode, "-l", self._language])
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return Reading("", time.perf_counter() - start, ended=False)
        return Reading(text, time.perf_counter() - start)

    def _run(self, arguments: Sequence[str]) -> str:
        done = subprocess.run(  # noqa: S603 - a program that the user named, arguments as a list, no shell
            [self._program, *arguments],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=True,
        )
        return done.stdout.decode("utf-8", errors="replace")
