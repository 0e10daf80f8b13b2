"""Draws pages in scripts that nano does not read, as an evaluation set or into one: what a calibration has to know of.

The words are names of languages, countries and currencies from Debian's `iso-codes`; faces are those of
`fonts-dejavu-core`, `fonts-liberation` and `fonts-wqy-microhei`. A third of the pages are spoilt as scans are.

    python benchmarks/other_scripts.py --seed 1 --of-each 2 --out data/calibration-1
    python benchmarks/other_scripts.py --seed 3 --of-each 2 --out data/other-scripts-3 --url http://127.0.0.1:8000

With `--url` a running service reads them: how many come back as text, and what share of their words it expects to be
right.
"""

from __future__ import annotations

import argparse
import gettext
import json
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.origin import command, origin
from trainer.data.render.degrade import degrade
from trainer.evaluation.samples import INDEX_NAME

DEJAVU = ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf")
LIBERATION = ("LiberationSans-Regular.ttf", "LiberationSerif-Regular.ttf", "LiberationSerif-Italic.ttf")
MICRO_HEI = ("wqy-microhei.ttc",)
SCRIPTS = {
    "russian": ("ru", DEJAVU + LIBERATION),
    "ukrainian": ("uk", DEJAVU + LIBERATION),
    "bulgarian": ("bg", DEJAVU + LIBERATION),
    "greek": ("el", DEJAVU + LIBERATION),
    "georgian": ("ka", DEJAVU[:2]),
    "armenian": ("hy", DEJAVU[:2]),
    "hebrew": ("he", (DEJAVU[0], *LIBERATION[:2])),
    "arabic": ("ar", DEJAVU[:1]),
    "chinese": ("zh_CN", MICRO_HEI),
    "japanese": ("ja", MICRO_HEI),
    "korean": ("ko", MICRO_HEI),
}
CATALOGUES = ("iso_639-2", "iso_3166-1", "iso_639-3", "iso_4217", "iso_3166-2")
MARGIN_PX = 20
SPOILT_SHARE = 0.3


def words_of(locale: Path, language: str) -> list[str]:
    """Names in a language that are not written in Latin letters."""
    words: list[str] = []
    for name in CATALOGUES:
        path = locale / language / "LC_MESSAGES" / f"{name}.mo"
        if path.is_file():
            with path.open("rb") as file:
                catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]  # has no public way
            words += [
                word
                for word in catalogue.values()
                if isinstance(word, str) and "\n" not in word and any(ord(character) > 0x36F for character in word)
            ]
    return words


def draw(words: list[str], face: Path, rng: random.Random) -> tuple[Image.Image, str]:
    """Lines of random words; returns the page and its text."""
    size = rng.randint(16, 34)
    font = ImageFont.truetype(str(face), size)
    width, num_lines, step = rng.choice([420, 560, 640]), rng.choice([3, 6, 10, 14]), int(size * 1.5)
    image = Image.new("L", (width, min(640, 2 * MARGIN_PX + step * num_lines)), 255)
    canvas = ImageDraw.Draw(image)
    lines: list[str] = []
    while len(lines) < num_lines and MARGIN_PX + step * (len(lines) + 1) <= image.height:
        line = ""
        while canvas.textlength(longer := f"{line} {rng.choice(words)}".strip(), font=font) <= width - 2 * MARGIN_PX:
            line = longer
        line = line or rng.choice(words)[:8]
        canvas.text((MARGIN_PX, MARGIN_PX + step * len(lines)), line, font=font, fill=0)
        lines.append(line)
    if rng.random() < SPOILT_SHARE:
        spoilt, _ = degrade(np.asarray(image), np.random.default_rng(rng.getrandbits(32)))
        image = Image.fromarray(spoilt)
    return image, "\n".join(lines)


def read(url: str, pages: list[tuple[str, Path]]) -> dict[str, dict[str, int]]:
    """What a service says of pages, by their scripts; prints each.

    Args:
        url: Of the service.
        pages: Script and image of each.

    Returns:
        How often each status came.
    """
    found: dict[str, dict[str, int]] = {}
    for script, path in pages:
        answer = httpx.post(f"{url}/ocr", files={"file": path.read_bytes()}, timeout=1200).raise_for_status()
        page = answer.json()["pages"][0]
        print(script, path.name, page["status"], page["confidence"], page["word_accuracy"], page["warnings"])
        counts = found.setdefault(script, {})
        counts[page["status"]] = counts.get(page["status"], 0) + 1
    return found


def main() -> None:
    """Draw the set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder, or a set to add to")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--of-each", type=int, default=2, help="pages of each language")
    parser.add_argument("--locale", type=Path, default=Path("/usr/share/locale"), help="of iso-codes")
    parser.add_argument("--fonts", type=Path, default=Path("/usr/share/fonts"))
    parser.add_argument("--url", help="a running service that is to read the pages")
    options = parser.parse_args()
    faces = {path.name: path for path in sorted(options.fonts.rglob("*.tt[fc]"))}
    rng = random.Random(options.seed)
    rows = []
    for script, (language, names) in SCRIPTS.items():
        words, drawable = words_of(options.locale, language), [faces[name] for name in names if name in faces]
        if not words or not drawable:
            raise SystemExit(f"{script}: no words below {options.locale}, or none of {', '.join(names)}")
        (options.out / script).mkdir(parents=True, exist_ok=True)
        for number in range(options.of_each):
            stem = f"{script}/{number:03d}"
            image, text = draw(words, rng.choice(drawable), rng)
            image.save(options.out / f"{stem}.png")
            (options.out / f"{stem}.txt").write_text(text + "\n", encoding="utf-8")
            rows.append({"image": f"{stem}.png", "text": f"{stem}.txt", "tier": script})
    with (options.out / INDEX_NAME).open("a", encoding="utf-8") as index:
        index.writelines(json.dumps(row) + "\n" for row in rows)
    row: dict[str, Any] = {"benchmark": "other_scripts", "seed": options.seed, "pages": len(rows)}
    if options.url:
        statuses = read(options.url, [(each["tier"], options.out / each["image"]) for each in rows])
        row |= {"statuses": statuses, "command": command(), **origin("cpu")}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
