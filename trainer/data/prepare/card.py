"""The card of a prepared set: README.md with its statistics, and a contact sheet to look at before training."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Final

from PIL import Image, ImageDraw

from trainer.data.prepare.output import write_file
from trainer.data.prepare.stats import SetStats
from trainer.data.render.bidi import base_level
from trainer.data.render.faces import FaceSet, is_invisible, needs_shaping
from trainer.data.render.lines import LineSetter
from trainer.data.render.pages import visible
from trainer.data.sources.columns import Columns
from trainer.data.sources.protocol import PageSource
from trainer.data.sources.rejected_rows import RejectedRows
from trainer.data.sources.samples import read_samples

SHEET_NAME: Final = "contact-sheet.png"
SHEET_COLUMNS: Final = 6
SHEET_ROWS: Final = 4
CELL_PX: Final = (240, 300)
GAP_PX: Final = 8
CAPTION_LINES: Final = 4
CAPTION_PX: Final = 13
"""Em size of the texts under the images."""
MISSING: Final = "\u25a1"
"""Instead of a letter that no face has."""
RARE_COUNT: Final = 5
"""Characters that occur less often are listed: a model will hardly learn them."""
LISTED: Final = 200


def write_card(folder: Path, manifest: dict[str, Any], stats: SetStats, fonts: Sequence[Path] = ()) -> None:
    """Write README.md and the contact sheet into a set whose files are complete; `fonts` draw the sheet's texts."""
    write_file(folder / SHEET_NAME, contact_sheet(_first_pages(folder, manifest), fonts))
    write_file(folder / "README.md", card_text(manifest, stats).encode(errors="replace"))


def card_text(manifest: dict[str, Any], stats: SetStats) -> str:
    """The card in Markdown, from `dataset.json` and the counts."""
    request = manifest["request"]
    lines = [
        "---",
        "task_categories: [image-to-text]",
        "---",
        "",
        f"# Pages from {request['source']['name']}",
        "",
        "Made by `python -m trainer prepare`; `dataset.json` lists every file with its checksum.",
        "Texts are in Unicode NFC with line feeds as line ends.",
        "",
        f"Fingerprint: `{manifest['fingerprint']}`",
        "",
        "| split | samples | images |",
        "|---|---|---|",
        *(f"| {name} | {each['num_samples']} | {each['num_images']} |" for name, each in manifest["splits"].items()),
        "",
        f"Texts hold {stats.num_text_characters:,} characters, the longest {stats.longest_text:,}. "
        f"Images are at most {stats.largest_px[0]} px wide and {stats.largest_px[1]} px high.",
        "",
        f"![Pages of the set]({SHEET_NAME})",
        "",
        "## Rows left out",
        "",
        *_left_out(manifest),
        "",
        *_doubtful(manifest),
        "## Characters",
        "",
        f"{len(stats.characters)} different ones.",
        "",
        "| script | different characters |",
        "|---|---|",
        *(f"| {name} | {count} |" for name, count in stats.scripts().items()),
        "",
        *_rare(stats),
        "",
        *_faces(stats),
    ]
    return "\n".join(lines).rstrip() + "\n"


def contact_sheet(pages: list[tuple[Image.Image, str]], fonts: Sequence[Path] = ()) -> bytes:
    """Lay out images, scaled down, each with the beginning of its text under it.

    Args:
        pages: at most as many as the sheet has cells.
        fonts: folders whose faces draw the texts; letters that no face has become boxes.

    Returns:
        A PNG file.
    """
    for image, _ in pages:
        image.thumbnail(CELL_PX)
    faces = FaceSet(fonts)  # without folders Pillow's own: a set is the same on every machine
    captions = [caption(text, CELL_PX[0], faces) for _, text in pages]
    images = [_with_caption(image, below) for (image, _), below in zip(pages, captions, strict=True)]
    rows = max(-(-len(images) // SHEET_COLUMNS), 1)
    width, height = (max(sides, default=1) for sides in ([i.width for i in images], [i.height for i in images]))
    columns = min(len(images), SHEET_COLUMNS)
    size = (columns * (width + GAP_PX) + GAP_PX, rows * (height + GAP_PX) + GAP_PX)
    sheet = Image.new("RGB", size, (200, 200, 200))
    for index, small in enumerate(images):
        x = GAP_PX + index % SHEET_COLUMNS * (width + GAP_PX)
        y = GAP_PX + index // SHEET_COLUMNS * (height + GAP_PX)
        sheet.paste(small, (x, y))
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def caption(text: str, width_px: int, faces: FaceSet) -> Image.Image:
    """The first lines of a text, small, on white.

    Args:
        text: of any length and script.
        width_px: of the result.
        faces: that draw it.

    Returns:
        An image in mode L of `CAPTION_LINES` lines.
    """
    shown = visible(text[: CAPTION_LINES * width_px])
    known = frozenset[int]().union(*(face.characters for face in faces.faces))
    missing = MISSING if ord(MISSING) in known else "?"

    def is_drawn(each: str) -> bool:
        is_joined = needs_shaping(each) or unicodedata.bidirectional(each) in {"R", "AL", "AN"}
        return is_invisible(each) or (ord(each) in known and (faces.has_shaper or not is_joined))

    drawn = "".join(each if is_drawn(each) else missing for each in shown)
    setter = LineSetter(faces, faces.choose(drawn, Random(0)), CAPTION_PX)
    step = setter.ascent + setter.descent
    image = Image.new("L", (width_px, CAPTION_LINES * step), 255)
    canvas = ImageDraw.Draw(image)
    paragraphs = (line for paragraph in drawn.split("\n") for line in setter.break_paragraph(paragraph, width_px))
    lines = list(islice(paragraphs, CAPTION_LINES + 1))
    for place, line in enumerate(lines[:CAPTION_LINES]):
        base = base_level(line)
        x = width_px - setter.width(line, base) if base else 0.0
        setter.draw(canvas, x, place * step + setter.ascent, line, base)
    return image


def _with_caption(image: Image.Image, below: Image.Image) -> Image.Image:
    size = (max(image.width, below.width), image.height + GAP_PX // 2 + below.height)
    framed = Image.new("RGB", size, (200, 200, 200))
    framed.paste(image, (0, 0))
    framed.paste(below, (0, image.height + GAP_PX // 2))
    return framed


def _first_pages(folder: Path, manifest: dict[str, Any]) -> list[tuple[Image.Image, str]]:
    """Images and texts from the whole set: the first of each file, then the second, up to the number of cells."""
    from trainer.data.sources.resolve import open_source

    files = [record["name"] for split in manifest["splits"].values() for record in split["files"]]
    cells = SHEET_COLUMNS * SHEET_ROWS
    chosen = files[:: max(len(files) // cells, 1)][:cells]
    each = -(-cells // max(len(chosen), 1))
    pages: list[tuple[Image.Image, str]] = []
    for name in chosen:
        pages += _pages_of_file(open_source(str(folder / name)), each)
    return pages[:cells]


def _pages_of_file(source: PageSource, count: int) -> list[tuple[Image.Image, str]]:
    pages: list[tuple[Image.Image, str]] = []
    for sample in read_samples(source, Columns(), RejectedRows()):
        if len(pages) == count:
            break
        with Image.open(io.BytesIO(sample.images[0].data)) as image:
            pages.append((image.convert("RGB"), sample.text))
    return pages


def _left_out(manifest: dict[str, Any]) -> list[str]:
    codes = {**manifest["broken_rows"]}
    if manifest["num_duplicates"]:
        codes["duplicates across splits"] = manifest["num_duplicates"]
    if not codes:
        return [f"None of {manifest['num_rows']}."]
    return [
        f"Of {manifest['num_rows']} rows; `broken-rows.jsonl` names each with its reason.",
        "",
        "| reason | rows |",
        "|---|---|",
        *(f"| {code} | {count} |" for code, count in sorted(codes.items())),
    ]


def _doubtful(manifest: dict[str, Any]) -> list[str]:
    if not manifest["doubtful_rows"]:
        return []
    return [
        "## Rows to look at",
        "",
        "They are in the set and may teach a model to invent; `doubtful-rows.jsonl` names each.",
        "",
        "| reason | rows |",
        "|---|---|",
        *(f"| {reason} | {count} |" for reason, count in sorted(manifest["doubtful_rows"].items())),
        "",
    ]


def _rare(stats: SetStats) -> list[str]:
    rare = sorted(character for character, count in stats.characters.items() if count < RARE_COUNT)
    if not rare:
        return [f"Every one of them occurs {RARE_COUNT} times or more."]
    listed = " ".join(f"U+{ord(character):04X}" for character in rare[:LISTED])
    more = f" and {len(rare) - LISTED} more" if len(rare) > LISTED else ""
    return [f"{len(rare)} occur less than {RARE_COUNT} times: {listed}{more}."]


def _faces(stats: SetStats) -> list[str]:
    if not stats.faces:
        return []
    rows = (f"| {name} | {count} |" for name, count in stats.faces.most_common())
    return ["## Fonts", "", "| face | samples |", "|---|---|", *rows]
