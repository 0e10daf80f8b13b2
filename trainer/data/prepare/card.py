"""The card of a prepared set: README.md with its statistics, and a contact sheet to look at before training."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

from PIL import Image

from trainer.data.prepare.output import write_file
from trainer.data.prepare.stats import SetStats
from trainer.data.sources.columns import Columns
from trainer.data.sources.protocol import PageSource
from trainer.data.sources.rejected_rows import RejectedRows
from trainer.data.sources.samples import read_samples

SHEET_NAME: Final = "contact-sheet.png"
SHEET_COLUMNS: Final = 6
SHEET_ROWS: Final = 4
CELL_PX: Final = (240, 300)
GAP_PX: Final = 8
RARE_COUNT: Final = 5
"""Characters that occur less often are listed: a model will hardly learn them."""
LISTED: Final = 200


def write_card(folder: Path, manifest: dict[str, Any], stats: SetStats) -> None:
    """Write README.md and the contact sheet into a set whose files are complete."""
    write_file(folder / SHEET_NAME, contact_sheet(_first_images(folder, manifest)))
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


def contact_sheet(images: list[Image.Image]) -> bytes:
    """Lay out at most as many images as the sheet has cells, scaled down; returns a PNG file."""
    rows = max(-(-len(images) // SHEET_COLUMNS), 1)
    for image in images:
        image.thumbnail(CELL_PX)
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


def _first_images(folder: Path, manifest: dict[str, Any]) -> list[Image.Image]:
    """Images from the whole set: the first of each file, then the second, up to the number of cells."""
    from trainer.data.sources.resolve import open_source

    files = [record["name"] for split in manifest["splits"].values() for record in split["files"]]
    cells = SHEET_COLUMNS * SHEET_ROWS
    chosen = files[:: max(len(files) // cells, 1)][:cells]
    each = -(-cells // max(len(chosen), 1))
    images: list[Image.Image] = []
    for name in chosen:
        images += _images_of_file(open_source(str(folder / name)), each)
    return images[:cells]


def _images_of_file(source: PageSource, count: int) -> list[Image.Image]:
    images: list[Image.Image] = []
    for sample in read_samples(source, Columns(), RejectedRows()):
        if len(images) == count:
            break
        with Image.open(io.BytesIO(sample.images[0].data)) as image:
            images.append(image.convert("RGB"))
    return images


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
