"""Many small pages through `deepsynth bulk`, whose command is killed on the way: nothing is lost, and nothing twice.

    OMP_NUM_THREADS=1 python benchmarks/bulk_kills.py --pages 10000 --kills 2 --out auto
    python benchmarks/bulk_kills.py --pages 60 --model fake

Draws pages of one or two short lines, each with a number of its own: PNGs in folders, PDFs of two to five pages, cells
of Parquet files, and among them files and cells that cannot be read. SIGKILL ends the command, and nothing else, at
moments drawn at random; the same command then goes on. At the end the tables are held against what was drawn, and the
texts against the numbers. With `--folder` all of it stays there, and this program goes on where it was ended.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow
import pyarrow.parquet
from PIL import Image, ImageDraw, ImageFont

from benchmarks.origin import command, keep, origin
from benchmarks.print_pages import PROSE

ROOT = Path(__file__).resolve().parents[1]
ROWS_PER_FILE = 1000
BROKEN = b"\x89PNG\r\n\x1a\n broken"
POLL_S = 0.5


def page(chance: random.Random, number: int) -> Image.Image:
    """A slip with a word and a number, and perhaps a second line."""
    words = [word for word in PROSE if len(word) > 3]
    lines = [f"{chance.choice(words)} {number}"]
    if chance.random() < 0.1:
        lines.append(f"{chance.choice(words)} {chance.choice(words)}")
    image = Image.new("L", (260, 30 + 34 * len(lines)), chance.randint(235, 255))
    font = ImageFont.load_default(chance.randint(20, 26))
    for index, line in enumerate(lines):
        ImageDraw.Draw(image).text((16, 14 + 34 * index), line, font=font, fill=chance.randint(0, 60))
    return image


def draw(folder: Path, count: int, seed: int) -> tuple[dict[str, int], dict[str, str]]:
    """Write the source; returns the number on each page, by `SOURCE/PAGE`, and the code of each document that fails."""
    chance = random.Random(seed)
    pages: dict[str, int] = {}
    failures: dict[str, str] = {}
    cells: list[bytes | None] = []
    shards = 0

    def png(number: int) -> bytes:
        page(chance, number).save(buffer := io.BytesIO(), "PNG")
        return buffer.getvalue()

    while len(pages) < count:
        number = len(pages)
        part = folder / f"{number // 1000:02}"
        part.mkdir(parents=True, exist_ok=True)
        kind = chance.random()
        if kind < 0.02:
            (part / f"{number:06}-broken.png").write_bytes(BROKEN)
            failures[f"{part.name}/{number:06}-broken.png"] = "undecodable_file"
        if kind < 0.75:
            (part / f"{number:06}.png").write_bytes(png(number))
            pages[f"{part.name}/{number:06}.png/1"] = number
        elif kind < 0.83:
            several = [page(chance, number + each) for each in range(min(chance.randint(2, 5), count - number))]
            several[0].save(part / f"{number:06}.pdf", "PDF", save_all=True, append_images=several[1:])
            pages |= {f"{part.name}/{number:06}.pdf/{each + 1}": number + each for each in range(len(several))}
        else:
            cells.append(png(number))
            pages[f"cells{shards}.parquet#{len(cells) - 1}/1"] = number
            if chance.random() < 0.02:
                failures[f"cells{shards}.parquet#{len(cells)}"] = "no_document"
                cells.append(None)
        if cells and (len(cells) >= 500 or len(pages) >= count):
            pyarrow.parquet.write_table(pyarrow.table({"image": cells}), folder / f"cells{shards}.parquet")
            cells, shards = [], shards + 1
    return pages, failures


def rows(out: Path, table: str) -> list[dict[str, Any]]:
    """All rows of a table."""
    parts = sorted((out / table).glob("part-*.parquet"))
    return [row for part in parts for row in pyarrow.parquet.read_table(part).to_pylist()]


def num_finished(out: Path) -> int:
    """About how many pages are on disk: rows of files, and documents of the journal."""
    num = 0
    for part in out.glob("pages/part-*.parquet"):
        num += pyarrow.parquet.read_metadata(part).num_rows
    with contextlib.suppress(FileNotFoundError):
        num += (out / "journal.jsonl").read_bytes().count(b"\n")
    return num


def read(words: list[str], settings: dict[str, str], out: Path, until: int | None) -> dict[str, Any]:
    """Run the command to its end, or kill it once about so many pages are on disk."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DEEPSYNTH_")}  # noqa: TID251
    began_s, before = time.monotonic(), num_finished(out)
    log = out.with_name("log")
    with log.open("wb") as stream:
        process = subprocess.Popen(words, env={**kept, **settings, "PYTHONPATH": str(ROOT)}, stderr=stream)
    was_killed = False
    while until is not None and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if num_finished(out) >= until:
            process.kill()
            was_killed = True
            break
        time.sleep(POLL_S)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began_s
    row: dict[str, Any] = {"killed": was_killed, "status": process.returncode, "seconds": round(seconds, 1)}
    row |= {"pages_before": before, "pages_after": num_finished(out)}
    if not was_killed:
        # The engine and the image processes are its children, and it waits for them.
        row["cpu_s"] = round(usage.ru_utime + usage.ru_stime, 1)
        said = log.read_text(errors="replace").strip().rpartition("\n")[2]
        row["said"] = said.replace(str(out), out.name)
    return row


def verdict(out: Path, pages: dict[str, int], failures: dict[str, str]) -> dict[str, Any]:
    """What was lost, twice, or read wrongly."""
    read_pages = rows(out, "pages")
    seen = Counter(f"{row['source']}/{row['page']}" for row in read_pages)
    failed = Counter((row["source"], row["code"]) for row in rows(out, "failures"))
    right = sum(
        str(pages.get(f"{row['source']}/{row['page']}")) in re.findall(r"\d+", row["text"] or "") for row in read_pages
    )
    return {
        "pages": len(pages),
        "failures": len(failures),
        "lost": len(pages.keys() - seen.keys()) + len(set(failures.items()) - failed.keys()),
        "unexpected": len(seen.keys() - pages.keys()) + len(failed.keys() - set(failures.items())),
        "twice": sum(number > 1 for number in (*seen.values(), *failed.values())),
        "with_their_number": right,
        "finish_reasons": Counter(str(row["finish_reason"]) for row in read_pages),
    }


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Draw, read with kills, and compare."""
    source, out, known = folder / "in", folder / "out", folder / "drawn.json"
    if not known.exists():
        source.mkdir(parents=True)
        known.write_text(json.dumps(draw(source, given.pages, given.seed)))
    pages, failures = json.loads(known.read_text())
    words = [sys.executable, "-m", "service", "bulk", str(source), str(out), "--rows-per-file", str(ROWS_PER_FILE)]
    settings = {"DEEPSYNTH_ENGINE": "fake", "DEEPSYNTH_FAKE_STEP_MS": "5"} if given.model == "fake" else {}
    if given.model != "fake":
        words += ["--layout", "lines"]
    # Of what is left to read, so that there is a kill to come.
    moments = sorted(random.randint(num_finished(out), int(0.95 * len(pages))) for _ in range(given.kills))
    runs = []
    for until in (*moments, None):
        runs.append(read(words, settings, out, until))
        print(json.dumps(runs[-1]), flush=True)
    return {"model": given.model, "seed": given.seed, **verdict(out, pages, failures), "runs": runs}


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--model", default="nano", choices=["nano", "fake"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where all of it is kept; default: a temporary one")
    parser.add_argument("--out", help="file that the line is appended to, or `auto`")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        row = run(given, folder)
    keep({"benchmark": "bulk_kills", "command": command(), **origin("cpu"), **row}, given.out)
    if row["lost"] or row["twice"] or row["unexpected"]:
        raise SystemExit("pages were lost, or are there twice")


if __name__ == "__main__":
    main()
