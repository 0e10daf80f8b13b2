"""Files of many kinds, made when they are needed: what programs and scanners write, and what breaks on the way."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pikepdf
from pikepdf import Array, Dictionary, Name, Pdf, Stream
from PIL import Image, ImageDraw
from PIL.TiffImagePlugin import TiffImageFile

from tests.support.pdf import make_pdf
from tests.support.png import COLOUR, make_png
from tests.support.tiff import TiffPage, make_tiff

SIZE = (200, 120)
TEXT = b"BT /F1 24 Tf 10 40 Td (Words here) Tj ET"


def font() -> Dictionary:
    return Dictionary(Type=Name.Font, Subtype=Name.Type1, BaseFont=Name.Helvetica)


def page_pixels(mode: str = "L") -> Image.Image:
    """Print that fills a part of a page."""
    image = Image.new("L", SIZE, 255)
    ImageDraw.Draw(image).text((15, 30), "Words on a page\nand more of them", fill=0, font_size=20)
    return image.convert(mode)


def encoded(image: Image.Image, pillow_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, pillow_format, **options)
    return stream.getvalue()


def saved(pdf: Pdf, **options: Any) -> bytes:
    stream = io.BytesIO()
    pdf.save(stream, **options)
    return stream.getvalue()


def text_pdf(content: bytes = TEXT, *, resources: dict[str, Any] | None = None, **page: Any) -> bytes:
    """One page with text, and other entries of the page."""
    pdf = Pdf.new()
    pdf.add_blank_page(page_size=SIZE)
    found = pdf.pages[0].obj
    fonts = Dictionary(Font=Dictionary(F1=pdf.make_indirect(font())))
    for name, value in (resources or {}).items():
        fonts[f"/{name}"] = pdf.make_indirect(value(pdf)) if callable(value) else value
    found.Resources = fonts
    found.Contents = pdf.make_stream(content)
    for name, value in page.items():
        found[f"/{name}"] = value(pdf) if callable(value) else value
    return saved(pdf)


def image_pdf(data: bytes, filter_name: str | None, colour: Any, bits: int = 8, **entries: Any) -> bytes:
    """A page that is one image."""
    pdf = Pdf.new()
    pdf.add_blank_page(page_size=SIZE)
    image = Stream(pdf, data)
    image.Type, image.Subtype, image.Width, image.Height = Name.XObject, Name.Image, SIZE[0], SIZE[1]
    image.BitsPerComponent = bits
    if colour is not None:
        image.ColorSpace = colour(pdf) if callable(colour) else colour
    for name, value in entries.items():
        image[f"/{name}"] = value(pdf) if callable(value) else value
    if filter_name is not None:
        image.Filter = Name(f"/{filter_name}")
    pdf.pages[0].obj.Resources = Dictionary(XObject=Dictionary(I=pdf.make_indirect(image)))
    pdf.pages[0].obj.Contents = pdf.make_stream(f"{SIZE[0]} 0 0 {SIZE[1]} 0 0 cm /I Do".encode())
    return saved(pdf, stream_decode_level=pikepdf.StreamDecodeLevel.none, compress_streams=False)


@cache
def group4() -> bytes:
    """The page as ITU-T T.6, black being 1."""
    stream = io.BytesIO(encoded(page_pixels("1"), "TIFF", compression="group4"))
    with Image.open(stream) as image:
        assert isinstance(image, TiffImageFile)
        (start,), (length,) = image.tag_v2[273], image.tag_v2[279]
    return stream.getvalue()[start : start + length]


def jbig2() -> bytes:
    """The page as JBIG2 in a PDF: a page, and a generic region that is coded as T.6 (ITU-T T.88, 7.4.6 and 7.4.8)."""
    width, height = SIZE
    page = struct.pack("!IIIIBH", width, height, 0, 0, 0, 0)
    region = struct.pack("!IIIIB", width, height, 0, 0, 0) + b"\x01" + group4()
    return b"".join(
        struct.pack("!IBBBI", number, kind, 0, 1, len(data)) + data
        for number, kind, data in ((0, 48, page), (1, 38, region))
    )


def function(pdf: Pdf, inputs: int, outputs: int) -> Any:
    """Darker with more ink."""
    body = "{" + "pop " * (inputs - 1) + "1 exch sub " + "dup " * (outputs - 1) + "}"
    made = Stream(pdf, body.encode())
    made.FunctionType, made.Domain, made.Range = 4, Array([0, 1] * inputs), Array([0, 1] * outputs)
    return pdf.make_indirect(made)


def samples(channels: int, bits: int = 8) -> bytes:
    """The page in each channel."""
    grey_HW = np.asarray(page_pixels())
    grey_HWC = np.repeat(grey_HW[:, :, None], channels, 2)
    return (grey_HWC.astype(">u2") * 257).tobytes() if bits == 16 else grey_HWC.tobytes()


def ink_samples(channels: int) -> bytes:
    return (255 - np.frombuffer(samples(channels), np.uint8)).tobytes()


def nested_forms(depth: int, *, is_endless: bool = False) -> bytes:
    """Text within forms within forms; or a form that draws itself."""

    def xobjects(pdf: Pdf) -> Any:
        inner = None
        for _ in range(depth):
            form = Stream(pdf, TEXT if inner is None else b"/X Do")
            form.Type, form.Subtype, form.BBox = Name.XObject, Name.Form, Array([0, 0, *SIZE])
            form.Resources = (
                Dictionary(Font=Dictionary(F1=font())) if inner is None else Dictionary(XObject=Dictionary(X=inner))
            )
            inner = pdf.make_indirect(form)
        if is_endless:
            inner.Resources = Dictionary(XObject=Dictionary(X=inner))
        return Dictionary(X=inner)

    return text_pdf(b"/X Do" if not is_endless else TEXT + b" /X Do", resources={"XObject": xobjects})


def encrypted(user: str, **options: Any) -> bytes:
    with Pdf.open(io.BytesIO(text_pdf())) as pdf:
        return saved(pdf, encryption=pikepdf.Encryption(owner="owner", user=user, **options))


def page_tree(change: Callable[[Pdf], None]) -> bytes:
    with Pdf.open(io.BytesIO(make_pdf(["Words here", "Words there"]))) as pdf:
        change(pdf)
        return saved(pdf)


def no_pages(pdf: Pdf) -> None:
    pdf.Root.Pages.Kids, pdf.Root.Pages.Count = Array([]), 0


def endless_tree(pdf: Pdf) -> None:
    pdf.Root.Pages.Kids.append(pdf.Root.Pages)


def shading(kind: int) -> Callable[[Pdf], Any]:
    def make(pdf: Pdf) -> Any:
        coordinates = [0, 0, *SIZE] if kind == 2 else [50, 50, 5, 80, 60, 60]
        ramp = Dictionary(FunctionType=2, Domain=Array([0, 1]), C0=Array([1, 1, 1]), C1=Array([0.5, 0.5, 1]), N=1)
        return Dictionary(
            S=Dictionary(ShadingType=kind, ColorSpace=Name.DeviceRGB, Coords=Array(coordinates), Function=ramp)
        )

    return make


def one_pixel(pillow_format: str, mode: str = "RGB") -> bytes:
    return encoded(Image.new(mode, (1, 1), 0), pillow_format)


def planar_tiff(bits: int) -> bytes:
    grey_HW = np.asarray(page_pixels())
    samples_HWC = np.repeat(grey_HW[:, :, None], 3, 2)
    return make_tiff(
        TiffPage(samples_HWC if bits == 8 else samples_HWC.astype(np.uint16) * 257, photometric=2, planar=2)
    )


PLAIN = make_pdf(["Words here"])
READ: dict[str, Callable[[], bytes]] = {
    # How a PDF is stored.
    "plain": lambda: PLAIN,
    "object streams": lambda: make_pdf(["Words here"], is_compressed=True),
    "linearised": lambda: saved(Pdf.open(io.BytesIO(PLAIN)), linearize=True),
    "bytes before its header": lambda: b"\r\n<html>\n" + PLAIN,
    "bytes after its end": lambda: PLAIN + b"\0" * 3000,
    "start of the table wrong": lambda: PLAIN.replace(b"startxref\n", b"startxref\n99"),
    "table wrong": lambda: PLAIN.replace(b" 00000 n", b" 00001 n").replace(b"000000", b"000001"),
    "no table": lambda: PLAIN[: PLAIN.index(b"xref\n")] + b"trailer\n<< /Root 1 0 R >>\n",
    "line ends changed": lambda: PLAIN.replace(b"\n", b"\r\n"),
    "length of the content wrong": lambda: PLAIN.replace(b"/Length ", b"/Length 9"),
    "empty user password": lambda: encrypted("", R=6),
    "empty user password, RC4": lambda: encrypted("", R=3, aes=False, metadata=False),
    # Page trees and boxes.
    "page tree that contains itself": lambda: page_tree(endless_tree),
    "box upside down": lambda: text_pdf(MediaBox=Array([SIZE[0], SIZE[1], 0, 0])),
    "box below zero": lambda: text_pdf(MediaBox=Array([-50, -50, 200, 120])),
    "huge box": lambda: text_pdf(b"q 100 0 0 100 0 0 cm " + TEXT + b" Q", MediaBox=Array([0, 0, 20_000, 12_000])),
    "crop box outside": lambda: text_pdf(CropBox=Array([-500, -500, 900, 900])),
    "turned by a quarter": lambda: text_pdf(Rotate=-90),
    "turned by an odd angle": lambda: text_pdf(Rotate=45),
    "unit of an inch": lambda: text_pdf(UserUnit=72),
    # Content.
    "forms in forms": lambda: nested_forms(12),
    "a form that draws itself": lambda: nested_forms(1, is_endless=True),
    "operators that do not exist": lambda: text_pdf(b"foo 1 2 bar " + TEXT + b" Q Q Q ET"),
    "states within states": lambda: text_pdf(b"q " * 5000 + TEXT),
    "content in pieces": lambda: text_pdf(
        Contents=lambda pdf: Array([pdf.make_stream(TEXT[:19]), pdf.make_stream(TEXT[19:])])
    ),
    "font that is not there": lambda: text_pdf(TEXT.replace(b"/F1", b"/F9") + TEXT),
    "axial shading": lambda: text_pdf(b"/S sh " + TEXT, resources={"Shading": shading(2)}),
    "radial shading": lambda: text_pdf(b"/S sh " + TEXT, resources={"Shading": shading(3)}),
    "annotation without its look": lambda: text_pdf(
        Annots=Array([Dictionary(Type=Name.Annot, Subtype=Name.Square, Rect=Array([0, 0, 9, 9]))])
    ),
    # Images in a PDF.
    "CCITT": lambda: image_pdf(
        group4(),
        "CCITTFaxDecode",
        Name.DeviceGray,
        1,
        DecodeParms=Dictionary(K=-1, Columns=SIZE[0], Rows=SIZE[1]),
    ),
    "JBIG2": lambda: image_pdf(jbig2(), "JBIG2Decode", Name.DeviceGray, 1),
    "JPX": lambda: image_pdf(encoded(page_pixels("RGB"), "JPEG2000"), "JPXDecode", None),
    "DCT": lambda: image_pdf(encoded(page_pixels("RGB"), "JPEG"), "DCTDecode", Name.DeviceRGB),
    "DCT, CMYK": lambda: image_pdf(
        encoded(page_pixels("CMYK"), "JPEG"), "DCTDecode", Name.DeviceCMYK, Decode=Array([1, 0] * 4)
    ),
    "16 bits": lambda: image_pdf(samples(3, 16), None, Name.DeviceRGB, 16),
    "CMYK": lambda: image_pdf(page_pixels("CMYK").tobytes(), None, Name.DeviceCMYK),
    "palette": lambda: image_pdf(
        page_pixels("P").tobytes(), None, Array([Name.Indexed, Name.DeviceGray, 255, bytes(range(256))])
    ),
    "Separation": lambda: image_pdf(
        ink_samples(1),
        None,
        lambda pdf: Array([Name.Separation, Name.Black, Name.DeviceGray, function(pdf, 1, 1)]),
    ),
    "DeviceN": lambda: image_pdf(
        ink_samples(2),
        None,
        lambda pdf: Array([Name.DeviceN, Array([Name.Cyan, Name.Black]), Name.DeviceRGB, function(pdf, 2, 3)]),
    ),
    "Lab": lambda: image_pdf(
        page_pixels().tobytes(),
        None,
        Array(
            [
                Name.Indexed,
                Array([Name.Lab, Dictionary(WhitePoint=Array([0.95, 1, 1.09]))]),
                255,
                bytes(value for level in range(256) for value in (level, 128, 128)),
            ]
        ),
    ),
    "CalRGB": lambda: image_pdf(samples(3), None, Array([Name.CalRGB, Dictionary(WhitePoint=Array([0.95, 1, 1.09]))])),
    "stencil": lambda: image_pdf(page_pixels("1").tobytes(), None, None, 1, ImageMask=True),
    "soft mask": lambda: image_pdf(
        b"\0" * (SIZE[0] * SIZE[1]),
        None,
        Name.DeviceGray,
        SMask=lambda pdf: pdf.make_indirect(mask_image(pdf)),
    ),
    # Image files.
    "PNG, 16 bits": lambda: make_png(
        *SIZE, 16, COLOUR, [row.tobytes() for row in np.frombuffer(samples(3, 16), np.uint8).reshape(SIZE[1], -1)]
    ),
    "TIFF, CMYK": lambda: encoded(page_pixels("CMYK"), "TIFF"),
    "TIFF, planes": lambda: planar_tiff(8),
    "TIFF, planes of 16 bits": lambda: planar_tiff(16),
    "TIFF, fax": lambda: encoded(page_pixels("1"), "TIFF", compression="group3"),
    "JPEG, CMYK": lambda: encoded(page_pixels("CMYK"), "JPEG"),
    "GIF": lambda: encoded(page_pixels("P"), "GIF"),
    "JPEG 2000": lambda: encoded(page_pixels("RGB"), "JPEG2000"),
}
"""Files with the same words, however they are stored."""


def mask_image(pdf: Pdf) -> Any:
    mask = Stream(pdf, ink_samples(1))
    mask.Type, mask.Subtype, mask.Width, mask.Height = Name.XObject, Name.Image, SIZE[0], SIZE[1]
    mask.ColorSpace, mask.BitsPerComponent = Name.DeviceGray, 8
    return mask


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "empty_file"),
    "a header alone": (lambda: b"%PDF-1.7\n", "undecodable_file"),
    "no pages": (lambda: page_tree(no_pages), "undecodable_file"),
    "a password": (lambda: encrypted("secret", R=6), "pdf_encrypted"),
    "a password, AES of 128 bits": (lambda: encrypted("secret", R=4), "pdf_encrypted"),
    "a password, RC4": (lambda: encrypted("secret", R=3, aes=False, metadata=False), "pdf_encrypted"),
    "an encryption of its own": (lambda: make_pdf(["a"], encrypted=True), "pdf_encrypted"),
    "a ribbon": (lambda: text_pdf(MediaBox=Array([0, 0, 9000, 20])), "extreme_aspect_ratio"),
    "JBIG2 that is none": (lambda: image_pdf(b"\x97JB2" * 40, "JBIG2Decode", Name.DeviceGray, 1), "undecodable_file"),
    "JPX that is none": (lambda: image_pdf(b"\0\0\0\x0cjP  " * 40, "JPXDecode", None), "undecodable_file"),
    "pixels of floats": (lambda: encoded(Image.new("F", (20, 20)), "TIFF"), "unsupported_pixel_type"),
    "a large image": (lambda: encoded(Image.new("1", (9000, 9000)), "PNG"), "too_many_pixels"),
    "a thread": (lambda: encoded(Image.new("1", (2000, 2)), "PNG"), "extreme_aspect_ratio"),
}
BLANK: dict[str, Callable[[], bytes]] = {
    "an empty page": lambda: make_pdf([""]),
    "a page without a box": lambda: make_pdf([""]).replace(b"/MediaBox [0 0 200 100] ", b""),
    **{
        f"one pixel, {name}": lambda name=name: one_pixel(name)
        for name in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP")
    },
}
