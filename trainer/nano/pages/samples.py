"""The sample images of the documentation: own texts in held-out faces, none of which training sees."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from PIL import Image

from trainer.nano.corpus.corpus import Corpus
from trainer.nano.fonts.library import FontFace, FontLibrary
from trainer.nano.pages.blocks import Block, FixedLines, Heading, Items, Paragraph, Table
from trainer.nano.pages.render import PageRenderer

_BLOCK: Final[list[Block]] = [
    Paragraph(
        "The night ferry left the harbour at twenty past nine with forty-one passengers and a cargo of seed potatoes. "
        "Marta Lindqvist stood at the rail and counted the lights of the town until only the lighthouse on Grey Point "
        "was left. She had promised her brother to write as soon as she arrived, and she had already decided on the "
        "first sentence: “The sea was quiet, and nobody asked me where I was going.”"
    ),
    Paragraph(
        "By morning the wind had turned. The captain, a patient man from Tromsø, offered everyone coffee and said the "
        "crossing would take 3 hours longer than planned – perhaps 4."
    ),
]
_INVOICE: Final[list[Block]] = [
    Heading("Invoice 2024-0817", 0),
    FixedLines(("Hollis & Brandt Bookbinders Ltd.", "14 Quarry Lane", "Bristol BS3 5QT")),
    Table((("Date:", "17 August 2024"), ("Customer No.:", "K-40291"), ("Due date:", "16 September 2024"))),
    Table(
        (
            ("Item", "Qty", "Price", "Amount"),
            ("Linen cover, dark green", "12", "8.40", "100.80"),
            ("Gold embossing, spine", "12", "3.25", "39.00"),
            ("Repair of atlas (1911)", "1", "64.00", "64.00"),
            ("Endpapers, marbled", "24", "1.15", "27.60"),
        ),
        header=True,
    ),
    Table((("Subtotal", "£231.40"), ("VAT 20 %", "£46.28"), ("Total due", "£277.68"))),
    Paragraph("Please pay within 30 days. Questions? accounts@hollis-brandt.example or 0117 496 0215."),
]
_PAGE: Final[list[Block]] = [
    Heading("Report on the Restoration of the Mill Bridge", 0),
    Heading("1 What was found"),
    Paragraph(
        "The bridge over the Orla was built in 1868 and carried carts until the new road was opened. When the working "
        "group first inspected it in March, two of the five oak piles had rotted through just above the waterline, and "
        "the railing on the northern side was missing over a length of 6.5 metres. The stone abutments, on the other "
        "hand, turned out to be in better condition than anyone had dared to hope."
    ),
    Paragraph(
        "Ms Okafor of the county office confirmed on 22 April that the bridge may be repaired without a new permit, "
        "provided that its width and clearance remain unchanged. The letter is attached to this report as Annex B."
    ),
    Heading("2 What was done"),
    Items(
        (
            "• Both damaged piles were replaced with larch from the parish forest.",
            "• The deck was relaid with 84 planks; 31 of the old ones could be used again.",
            "• A new railing, painted in the original grey-blue, was fitted in June.",
        )
    ),
    Paragraph(
        "Volunteers worked on eleven Saturdays. Their lunch was cooked by the bakery in Mühlgasse, which refused every "
        "offer of payment and asked only that the bench beside the water be kept. It has been kept, and it has been "
        "given a new backrest too."
    ),
    Heading("3 What it cost"),
    Table(
        (
            ("Position", "Planned", "Spent"),
            ("Timber", "€ 4,200", "€ 3,865"),
            ("Metal fittings", "€ 950", "€ 1,120"),
            ("Paint and oil", "€ 380", "€ 342"),
            ("Crane hire", "€ 1,600", "€ 1,600"),
            ("Total", "€ 7,130", "€ 6,927"),
        ),
        header=True,
    ),
    Paragraph(
        "The remaining € 203 will pay for a yearly inspection. The next one is due on 3 May; anybody who owns a ladder "
        "and a pair of rubber boots is warmly invited to take part."
    ),
    FixedLines(("Jonas Weidmann, secretary", "bridge@orla-parish.example")),
]

# Name, content, width, height, em size, margin, file of the face.
SAMPLES: Final = (
    ("sample-block", _BLOCK, 640, 640, 25, 40, "charis-sil-regular"),
    ("sample-invoice", _INVOICE, 900, 1000, 23, 70, "lato-regular"),
    ("sample-page", _PAGE, 1100, 1540, 22, 110, "vollkorn-regular"),
)


def build_samples(fonts_dir: Path, corpus_dir: Path, out_dir: Path, seed: int = 11) -> list[Path]:
    """Write the sample images `<name>.png` and their texts `<name>.txt`; returns the images' paths.

    The corpus must exist but its texts are not used.
    """
    library = FontLibrary(fonts_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, blocks, width, height, size, margin, face_name in SAMPLES:
        renderer = PageRenderer(library, Corpus(corpus_dir), seed)
        page = renderer.render_blocks(blocks, width, height, size, margin, face=_face(library, face_name))
        path = out_dir / f"{name}.png"
        Image.fromarray(page.ink).save(path, optimize=True)
        path.with_suffix(".txt").write_text(page.text + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def _face(library: FontLibrary, stem: str) -> FontFace:
    for face in library.faces:
        if Path(face.file).stem == stem:
            return face
    raise ValueError(f"{library.folder}: no face {stem!r}")
