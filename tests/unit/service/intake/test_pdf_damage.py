"""Pages of which PDFium draws less than there is, without a word: they are not taken for blank ones."""

from __future__ import annotations

import io

import numpy as np
import pikepdf
import pytest
from pikepdf import Dictionary, Name

from service.errors import UndecodableError
from service.intake.decoding import OpenDocument
from service.intake.document import Document
from service.intake.limits import DecodeTask, IntakeLimits
from service.intake.pages import DecodedPage
from shared.deepseek_ocr.geometry import GeometryConfig, Mode
from tests.support.service import encode, page_image

SIZE_PT = (300, 200)
SHOW_TEXT = b"BT /F1 18 Tf 20 100 Td (Delivery note 4711) Tj ET"


def jpeg() -> bytes:
    noise = np.random.default_rng(0).integers(0, 60, (200, 300, 3), np.uint8)
    page = np.clip(np.asarray(page_image("Delivery note 4711", (300, 200))).astype(int) - noise, 0, 255)
    from PIL import Image

    return encode(Image.fromarray(page.astype(np.uint8)), "JPEG", quality=90)


def pdf(content: bytes, image: bytes | None = None, filter_name: Name = Name.DCTDecode, **page: object) -> bytes:
    """A page with a content stream, perhaps an image `/I`, and the font `/F1`."""
    with pikepdf.new() as document:
        target = document.add_blank_page(page_size=SIZE_PT)
        font = Dictionary(Type=Name.Font, Subtype=Name.Type1, BaseFont=Name.Helvetica)
        resources = Dictionary(Font=Dictionary(F1=font))
        if image is not None:
            resources.XObject = Dictionary(
                I=pikepdf.Stream(
                    document,
                    image,
                    Type=Name.XObject,
                    Subtype=Name.Image,
                    Width=300,
                    Height=200,
                    BitsPerComponent=8,
                    ColorSpace=Name.DeviceRGB,
                    Filter=filter_name,
                )
            )
        target.obj.Resources = resources
        target.obj.Contents = pikepdf.Stream(document, content)
        for name, value in page.items():
            target.obj[f"/{name}"] = value
        stream = io.BytesIO()
        document.save(stream, compress_streams=False, stream_decode_level=pikepdf.StreamDecodeLevel.none)
        return stream.getvalue()


def decode(data: bytes) -> DecodedPage:
    return OpenDocument(Document(data, IntakeLimits())).decode(DecodeTask(1, Mode.SMALL, GeometryConfig()))


WHOLE = b"q 300 0 0 200 0 0 cm /I Do Q"
CORNER = b"q 60 0 0 40 230 150 cm /I Do Q " + SHOW_TEXT


def test_page_with_its_image_is_whole() -> None:
    page = decode(pdf(WHOLE, jpeg()))
    assert not page.is_damaged
    assert not page.ink.is_blank


@pytest.mark.parametrize("filter_name", [Name.DCTDecode, Name.JPXDecode])
def test_page_that_is_an_image_of_garbage_fails(filter_name: Name) -> None:
    with pytest.raises(UndecodableError):
        decode(pdf(WHOLE, b"no picture at all", filter_name))


def test_a_small_image_of_garbage_is_said_to_be_missing() -> None:
    page = decode(pdf(CORNER, b"no picture at all"))
    assert page.is_damaged
    assert not page.ink.is_blank


def test_an_image_that_lacks_its_end_is_read_as_far_as_it_goes() -> None:
    data = jpeg()
    page = decode(pdf(WHOLE, data[: int(len(data) * 0.93)]))
    assert page.is_damaged
    assert not page.ink.is_blank
    with pytest.raises(UndecodableError):
        decode(pdf(WHOLE, data[: int(len(data) * 0.3)]))


@pytest.mark.parametrize(
    ("content", "page"),
    [
        (b"/Missing Do", {}),
        (b"x" * 50, {"Contents": "garbage"}),
    ],
    ids=["no such image", "no deflate"],
)
def test_content_of_which_nothing_can_be_drawn_is_no_blank_page(content: bytes, page: dict[str, object]) -> None:
    if page.get("Contents") == "garbage":
        data = pdf(b"").replace(b"<< /Length 0 >>", b"<< /Length 9 /Filter /FlateDecode >>")
        data = data.replace(b"stream\n\nendstream", b"stream\nno deflate\nendstream")
    else:
        data = pdf(content, **page)
    with pytest.raises(UndecodableError):
        decode(data)


@pytest.mark.parametrize(
    "content",
    [b"", b"q Q", b"BT /F1 9 Tf () Tj [()] TJ ET", b"1 1 1 rg 0 0 300 200 re f", b"BT 3 Tr /F1 18 Tf (unseen) Tj ET"],
)
def test_blank_page_is_blank(content: bytes) -> None:
    page = decode(pdf(content))
    assert page.ink.is_blank
    assert not page.is_damaged
