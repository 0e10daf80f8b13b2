"""ALTO 4.4: pages, blocks, lines and words with their boxes, in pixels.

Boxes of blocks are the model's where it gave some; those of lines and words are estimated, which the second processing
step says.

Source: http://www.loc.gov/standards/alto/v4/alto-4-4.xsd
"""

from __future__ import annotations

import xml.etree.ElementTree as ET  # written, never parsed  # nosec B405

from service.ocr.formats.document import ReadDocument
from service.ocr.formats.layout import Block, BoxPx, Line, blocks_of
from service.ocr.formats.markup import xml_text
from service.ocr.formats.output_format import OutputFormat, in_thread
from service.schemas import PageAnswer

NAMESPACE = "http://www.loc.gov/standards/alto/ns-v4#"
_SCHEMA = "http://www.loc.gov/standards/alto/v4/alto-4-4.xsd"
_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
_STEPS = (
    ("OCR_1", "contentGeneration", "Text and boxes of blocks read by the model."),
    ("POSITIONS_1", "contentModification", "Positions of lines and words estimated from the text and its block's box."),
)


def render(document: ReadDocument) -> bytes:
    """The document."""
    root = ET.Element(
        "alto",
        {
            "xmlns": NAMESPACE,
            "xmlns:xsi": _INSTANCE,
            "xsi:schemaLocation": f"{NAMESPACE} {_SCHEMA}",
            "SCHEMAVERSION": "4.4",
        },
    )
    _describe(root, document)
    layout = ET.SubElement(root, "Layout")
    for page in document.answer.pages:
        _page(layout, page, blocks_of(page, is_markdown=document.is_markdown))
    return ET.tostring(root, encoding="UTF-8", xml_declaration=True) + b"\n"


def _describe(root: ET.Element, document: ReadDocument) -> None:
    description = ET.SubElement(root, "Description")
    ET.SubElement(description, "MeasurementUnit").text = "pixel"
    source = ET.SubElement(description, "sourceImageInformation")
    ET.SubElement(source, "fileName").text = xml_text(document.name)
    for identifier, category, text in _STEPS:
        step = ET.SubElement(description, "Processing", ID=identifier)
        ET.SubElement(step, "processingCategory").text = category
        ET.SubElement(step, "processingStepDescription").text = text
        ET.SubElement(
            step, "processingStepSettings"
        ).text = f"model {xml_text(document.answer.model_id)}, task {document.task}"
        software = ET.SubElement(step, "processingSoftware")
        ET.SubElement(software, "softwareName").text = "DeepSynth OCR"


def _page(layout: ET.Element, page: PageAnswer, blocks: list[Block]) -> None:
    number = page.page
    entries = {"ID": f"page_{number}", "PHYSICAL_IMG_NR": str(number)}
    if page.status != "ok":
        entries["PAGECLASS"] = page.status
    if page.confidence is not None:
        entries["PC"] = f"{page.confidence:.4f}"
    if not page.width_px or not page.height_px:
        ET.SubElement(layout, "Page", entries)
        return
    size = {"WIDTH": str(page.width_px), "HEIGHT": str(page.height_px)}
    element = ET.SubElement(layout, "Page", {**entries, **size})
    space = ET.SubElement(element, "PrintSpace", {**size, "HPOS": "0", "VPOS": "0"})
    for index, block in enumerate(blocks, 1):
        place = f"{number}_{index}"
        if not block.lines:
            ET.SubElement(space, "Illustration", {"ID": f"image_{place}", **_position(block.box_px)})
            continue
        text = ET.SubElement(space, "TextBlock", {"ID": f"block_{place}", **_position(block.box_px)})
        for line_index, line in enumerate(block.lines, 1):
            _line(text, line, f"{place}_{line_index}")


def _line(block: ET.Element, line: Line, place: str) -> None:
    direction = {"BASEDIRECTION": "rtl"} if line.is_rtl else {}
    element = ET.SubElement(block, "TextLine", {"ID": f"line_{place}", **_position(line.box_px), **direction})
    for index, word in enumerate(line.words, 1):
        if index > 1:
            ET.SubElement(element, "SP")
        entries = {"ID": f"word_{place}_{index}", **_position(word.box_px), "CONTENT": word.text}
        if word.confidence is not None:
            entries["WC"] = f"{word.confidence:.4f}"
        ET.SubElement(element, "String", entries)


def _position(box_px: BoxPx) -> dict[str, str]:
    left, top, right, bottom = box_px
    return {"HPOS": str(left), "VPOS": str(top), "WIDTH": str(right - left), "HEIGHT": str(bottom - top)}


FORMAT = OutputFormat("alto", "application/alto+xml", ".alto.xml", in_thread(render), has_word_confidences=True)
