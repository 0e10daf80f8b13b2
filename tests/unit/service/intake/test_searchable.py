"""Searchable PDFs, read by libraries other than the one that writes them: pypdf, PDFium, fontTools, pdftotext."""

from __future__ import annotations

import ctypes
import io
import subprocess
from pathlib import Path
from typing import Any, cast

import numpy as np
import pikepdf
import pypdfium2  # type: ignore[import-untyped] # ships no types
import pytest
from fontTools.ttLib import TTFont
from pikepdf import Array, Dictionary, Name
from PIL import Image, ImageCms
from pypdf import PdfReader
from pypdfium2 import raw

from service.errors import PdfEncryptedError, UndecodableError
from service.intake.decoding import OpenDocument
from service.intake.document import Document
from service.intake.glyphless import font_program
from service.intake.limits import IntakeLimits
from service.intake.text_layer import TextLine, TextPage, TextTask
from shared.images.page_ink import Turn
from tests.support.pdf import make_pdf
from tests.support.programs import require
from tests.support.service import encode, page_image

LIMITS = IntakeLimits()


def seen(data: bytes) -> Image.Image:
    """The first page as the model sees it."""
    return OpenDocument(Document(data, LIMITS)).page_image(1)[0]


def searchable(data: bytes, *pages: TextPage) -> bytes:
    """Through the frame that goes to an image process."""
    document = OpenDocument(Document(data, LIMITS, tuple(page.page for page in pages)))
    try:
        return document.searchable_pdf(TextTask.from_wire(TextTask(pages).to_wire()))
    finally:
        document.close()


def text_page(size: tuple[int, int], *texts: str, page: int = 1, is_rtl: bool = False) -> TextPage:
    pitch = size[1] / max(1, len(texts))
    lines = [
        TextLine(text, (0, index * pitch, size[0], (index + 1) * pitch), is_rtl) for index, text in enumerate(texts)
    ]
    return TextPage(page, *size, tuple(lines))


def picture(size: tuple[int, int] = (60, 40)) -> Image.Image:
    """No two corners alike, so that every way to turn it shows."""
    columns, rows = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([columns, rows, 255 - columns], axis=-1).astype(np.uint8))


def shown(pdf: bytes, size: tuple[int, int], page: int = 0) -> np.ndarray:
    """A page as PDFium draws it, one dot for each pixel of the image."""
    document = pypdfium2.PdfDocument(pdf)
    try:
        # A little less: PDFium rounds the size up.
        scale = min(size[0] / document[page].get_width(), size[1] / document[page].get_height()) * (1 - 1e-6)
        drawn = document[page].render(scale=scale, rev_byteorder=True)
        image = drawn.to_pil().convert("RGB")
    finally:
        document.close()
    assert image.size == size
    return np.asarray(image, np.int16)


def embedded(pdf: bytes) -> np.ndarray:
    """The image of the first page as PDFium decodes it, without its mask."""
    document = pypdfium2.PdfDocument(pdf)
    try:
        (found,) = document[0].get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE])
        return np.asarray(found.get_bitmap().to_pil().convert("RGB"), np.int16)
    finally:
        document.close()


def words_of(pdf: bytes, page: int = 0) -> str:
    document = pypdfium2.PdfDocument(pdf)
    try:
        return document[page].get_textpage().get_text_range()
    finally:
        document.close()


def place_of(pdf: bytes, word: str, size: tuple[int, int], page: int = 0) -> tuple[int, int]:
    """Middle of a word in pixels of the page as it is shown, y downwards."""
    document = pypdfium2.PdfDocument(pdf)
    try:
        sheet = document[page]
        text = sheet.get_textpage()
        start, count = text.search(word).get_next()
        boxes = [text.get_charbox(index) for index in range(start, start + count)]
        x = (min(box[0] for box in boxes) + max(box[2] for box in boxes)) / 2
        y = (min(box[1] for box in boxes) + max(box[3] for box in boxes)) / 2
        across, down = ctypes.c_int(), ctypes.c_int()
        raw.FPDF_PageToDevice(sheet, 0, 0, *size, 0, x, y, ctypes.byref(across), ctypes.byref(down))
        return across.value, down.value
    finally:
        document.close()


def test_jpeg_is_embedded_bit_for_bit() -> None:
    upload = encode(page_image(), "JPEG", dpi=(100, 100))
    reader = PdfReader(io.BytesIO(searchable(upload, text_page((320, 200), "Hello, page"))))
    (page,) = reader.pages
    image = page["/Resources"]["/XObject"]["/Image"]
    assert image._data == upload
    assert image["/Filter"] == "/DCTDecode"
    assert [float(side) for side in page.mediabox[2:]] == [320 * 72 / 100, 200 * 72 / 100]
    assert page.extract_text().strip() == "Hello, page"


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_orientation_is_kept_in_the_file_and_shown_upright(turn: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"PNG": {}, "JPEG": {"quality": 95}, "WEBP": {"lossless": True}, "TIFF": {}}[file_format]
    upload = encode(picture(), file_format, exif=exif.tobytes(), **options)
    upright = seen(upload)
    pdf = searchable(upload, text_page(upright.size, "top", "bottom"))
    assert np.abs(shown(pdf, upright.size) - np.asarray(upright, np.int16)).max() <= 12
    assert place_of(pdf, "top", upright.size)[1] < upright.height / 2 < place_of(pdf, "bottom", upright.size)[1]


def sixteen_bit() -> Image.Image:
    return Image.fromarray((np.asarray(picture().convert("L"), np.uint16) << 8) + 17)


@pytest.mark.parametrize(
    ("image", "file_format", "options"),
    [
        (picture().convert("1"), "PNG", {}),
        (picture().convert("L"), "PNG", {}),
        (picture(), "PNG", {}),
        (picture().convert("P"), "PNG", {}),
        (picture().quantize(4), "PNG", {"bits": 2}),
        (sixteen_bit(), "PNG", {}),
        (picture().convert("1"), "TIFF", {"compression": "group4"}),
        (picture().convert("L"), "TIFF", {"compression": "tiff_lzw"}),
        (picture(), "TIFF", {}),
        (sixteen_bit(), "TIFF", {}),
        (picture(), "WEBP", {"lossless": True}),
        (picture().convert("L"), "JPEG", {"quality": 95}),
        (picture(), "BMP", {}),
        (picture().convert("P"), "GIF", {}),
        (picture(), "JPEG2000", {"irreversible": False}),
        (picture(), "AVIF", {"quality": 90}),
    ],
)
def test_pixels_are_the_same_as_before(image: Image.Image, file_format: str, options: dict) -> None:
    upload = encode(image, file_format, **options)
    page_seen = seen(upload)
    pdf = searchable(upload, text_page(page_seen.size, "word"))
    # Samples of 16 bits stay so in the file, and are rounded as they are shown.
    tolerance = 2 if file_format == "JPEG" else int(image.mode.startswith("I"))
    assert np.abs(embedded(pdf) - np.asarray(page_seen, np.int16)).max() <= tolerance
    assert words_of(pdf).strip() == "word"


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (picture().convert("LA"), {}),
        (picture().convert("RGBA"), {}),
        (picture().convert("L"), {"transparency": 3}),
        (picture().convert("P"), {"transparency": 3}),
    ],
)
def test_transparent_page_lies_on_the_ground_on_which_it_was_read(image: Image.Image, options: dict) -> None:
    if "A" in image.getbands():
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    upload = encode(image, **options)
    pdf = searchable(upload, text_page(image.size, "word"))
    assert np.array_equal(embedded(pdf), np.asarray(seen(upload), np.int16))


def test_png_rows_are_the_uploads_own() -> None:
    upload = encode(picture())
    at = upload.index(b"IDAT")
    length = int.from_bytes(upload[at - 4 : at])
    image = PdfReader(io.BytesIO(searchable(upload, text_page((60, 40), "x")))).pages[0]["/Resources"]["/XObject"]
    assert image["/Image"]._data == upload[at + 4 : at + 4 + length]


def test_inks_of_a_cmyk_file_are_kept() -> None:
    upload = encode(picture().convert("CMYK"), "TIFF")
    image = PdfReader(io.BytesIO(searchable(upload, text_page((60, 40), "x")))).pages[0]["/Resources"]["/XObject"]
    assert image["/Image"]["/ColorSpace"] == "/DeviceCMYK"
    assert image["/Image"].get_data() == picture().convert("CMYK").tobytes()


def test_inverted_inks_of_a_jpeg_are_named_so() -> None:
    upload = encode(picture().convert("CMYK"), "JPEG", quality=95)
    page_seen = seen(upload)
    pdf = searchable(upload, text_page((60, 40), "x"))
    # Two ways from inks to light, so only roughly the same.
    assert np.abs(shown(pdf, (60, 40)) - np.asarray(page_seen, np.int16)).mean() < 30


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_colour_profile_is_kept(file_format: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pdf = searchable(encode(picture(), file_format, icc_profile=profile), text_page((60, 40), "x"))
    space = PdfReader(io.BytesIO(pdf)).pages[0]["/Resources"]["/XObject"]["/Image"]["/ColorSpace"]
    assert (space[0], space[1].get_object().get_data()) == ("/ICCBased", profile)


@pytest.mark.parametrize(
    ("dpi", "width_pt"), [((300, 300), 24), ((204, 98), 100 * 72 / 204), ((1, 1), 48), (None, 48), ((72000, 72000), 48)]
)
@pytest.mark.parametrize("file_format", ["TIFF", "PNG"])
def test_page_has_the_size_of_the_scan_or_of_150_dots_an_inch(
    dpi: tuple[int, int] | None, width_pt: float, file_format: str
) -> None:
    upload = encode(picture((100, 50)), file_format, **({"dpi": dpi} if dpi else {}))
    page = PdfReader(io.BytesIO(searchable(upload, text_page((100, 50), "x")))).pages[0]
    assert float(page.mediabox.width) == pytest.approx(width_pt, abs=0.1)


def test_only_frames_that_were_read_become_pages() -> None:
    frames = [page_image(f"frame {number}", size=(100 + number, 50)) for number in range(4)]
    upload = encode(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    pdf = searchable(upload, text_page((101, 50), "second", page=2), text_page((103, 50), "fourth", page=4))
    reader = PdfReader(io.BytesIO(pdf))
    assert [page.extract_text().strip() for page in reader.pages] == ["second", "fourth"]
    assert [page["/Resources"]["/XObject"]["/Image"]["/Width"] for page in reader.pages] == [101, 103]


SCRIPTS = {
    "Latin": "Füße, naïve – “œuvre”",
    "Greek": "Ἀρχὴ σοφίας",
    "Cyrillic": "Съешь ещё",
    "Devanagari": "नमस्ते दुनिया",
    "Thai": "สวัสดีชาวโลก",
    "Japanese": "日本語のテキスト、𠮷野家",
    "Korean": "안녕하세요 세계",
    "astral": "𝒜𝒷 😀 𐍈",
    "brackets": "a(b)c\\d <e> [f]",
}


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=list(SCRIPTS))
def test_any_script_can_be_read_back(text: str) -> None:
    pdf = searchable(encode(page_image()), text_page((320, 200), text))
    assert PdfReader(io.BytesIO(pdf)).pages[0].extract_text().strip() == text
    assert words_of(pdf).strip() == text


@pytest.mark.parametrize("text", ["שלום עולם", "مرحبا بالعالم"])
def test_right_to_left_text_reads_in_order_and_begins_at_the_right(text: str) -> None:
    pdf = searchable(encode(page_image()), text_page((320, 200), text, is_rtl=True))
    assert words_of(pdf).strip() == text
    first, second = text.split()
    assert place_of(pdf, first, (320, 200))[0] > 160 > place_of(pdf, second, (320, 200))[0]


def test_pdftotext_finds_lines_in_order(tmp_path: Path) -> None:
    program = require("pdftotext")
    pdf = tmp_path / "scan.pdf"
    pdf.write_bytes(searchable(encode(page_image()), text_page((320, 200), "First line", "Zweite Zeile", "三行目 😀")))
    ended = subprocess.run([program, str(pdf), "-"], check=True, capture_output=True)
    assert ended.stderr == b""
    assert ended.stdout.decode().split("\n")[:3] == ["First line", "Zweite Zeile", "三行目 😀"]


def test_text_is_not_seen() -> None:
    upload = encode(Image.new("RGB", (320, 200), "white"))
    assert shown(searchable(upload, text_page((320, 200), "Hello, page", "x" * 50)), (320, 200)).min() == 255


def test_font_is_complete() -> None:
    font = TTFont(io.BytesIO(font_program()), checkChecksums=2)
    assert {tag: font[tag].__class__.__name__ for tag in font.keys() if tag != "GlyphOrder"}  # noqa: SIM118 -- no mapping
    assert [width for width, _ in font["hmtx"].metrics.values()] == [500, 500, 1000]


def scan(num_pages: int = 1, **page_entries: object) -> bytes:
    """Pages that show a grey square in the lower left corner; they share their content and resources."""
    with pikepdf.new() as pdf:
        resources = pdf.make_indirect(Dictionary(ExtGState=Dictionary()))
        content = pdf.make_stream(b"0.5 g 10 10 50 50 re f % the page's own")
        for _ in range(num_pages):
            page = pdf.add_blank_page(page_size=(200, 100))
            page.obj.Resources = resources
            page.obj.Contents = content
            for name, value in page_entries.items():
                page.obj[Name("/" + name)] = value
        output = io.BytesIO()
        pdf.save(output, compress_streams=False)
        return output.getvalue()


def test_pdf_keeps_its_content_and_its_other_pages() -> None:
    reader = PdfReader(io.BytesIO(searchable(scan(3), text_page((417, 209), "found", page=2))))
    assert [page.extract_text().strip() for page in reader.pages] == ["", "found", ""]
    layer, own = (part.get_object().get_data() for part in cast("Any", reader.pages[1]["/Contents"]))
    assert own == b"0.5 g 10 10 50 50 re f % the page's own"
    assert b" Tj" in layer
    for page in (reader.pages[0], reader.pages[2]):
        assert "/Font" not in page["/Resources"]
        assert page.get_contents().get_data() == b"0.5 g 10 10 50 50 re f % the page's own"
    assert "/ExtGState" in reader.pages[1]["/Resources"]


@pytest.mark.parametrize("turn", [0, 90, 180, 270, -90])
@pytest.mark.parametrize("crop", [None, (20, 10, 180, 90)])
def test_text_is_where_it_was_read_whichever_way_the_page_is_turned(
    turn: int, crop: tuple[int, int, int, int] | None
) -> None:
    entries: dict[str, object] = {"Rotate": turn}
    if crop is not None:
        entries["CropBox"] = Array(list(crop))
    upload = scan(**entries)
    image = seen(upload)
    left, top = image.width // 8, image.height // 4
    line = TextLine("needle", (left, top, left + image.width // 2, top + 20))
    pdf = searchable(upload, TextPage(1, *image.size, (line,)))
    across, down = place_of(pdf, "needle", image.size)
    assert abs(across - (left + image.width // 4)) <= 2
    assert abs(down - (top + 10)) <= 2
    assert np.array_equal(np.asarray(seen(pdf)), np.asarray(image))


def test_page_with_text_gets_no_second_layer() -> None:
    upload = make_pdf(["Hello", ""])
    pages = (text_page((417, 209), "Hello"), text_page((417, 209), "new", page=2))
    reader = PdfReader(io.BytesIO(searchable(upload, *pages)))
    assert [page.extract_text().strip() for page in reader.pages] == ["Hello", "new"]


def test_pdf_without_anything_to_add_stays_readable() -> None:
    assert words_of(searchable(make_pdf(["Hello"]), TextPage(1, 417, 209, ()))).strip() == "Hello"


def test_page_in_larger_units_gets_its_text_where_it_was_read() -> None:
    upload = scan(UserUnit=2)
    image = seen(upload)
    line = TextLine("needle", (40, 100, 240, 120))
    assert place_of(searchable(upload, TextPage(1, *image.size, (line,))), "needle", image.size) == (140, 110)


def test_what_an_owner_forbids_stays_forbidden() -> None:
    output = io.BytesIO()
    with pikepdf.open(io.BytesIO(scan())) as pdf:
        allow = pikepdf.Permissions(extract=False)
        pdf.save(output, encryption=pikepdf.Encryption(owner="secret", user="", allow=allow))
    made = searchable(output.getvalue(), text_page((417, 209), "found"))
    with pikepdf.open(io.BytesIO(made)) as pdf:
        assert (pdf.is_encrypted, pdf.allow.extract) == (True, False)
    assert words_of(made).strip() == "found"


def test_password_is_asked_for_with_its_own_error_which_the_next_file_does_not_get() -> None:
    with pytest.raises(PdfEncryptedError):
        searchable(make_pdf(["x"], encrypted=True), text_page((417, 209), "x"))
    with pytest.raises(UndecodableError):
        searchable(scan().replace(b"/Pages", b"/Sages"), text_page((417, 209), "x"))


def damaged_files() -> list[bytes]:
    whole = scan()
    odd = [
        scan(Resources=Array([1, 2])),
        scan(Resources=Name.Odd),
        scan(Resources=Dictionary(Font=Name.Odd)),
        scan(Contents=Name.Odd),
        scan(Rotate=Name.Odd),
    ]
    return [whole[: len(whole) // 2], b"%PDF-1.7\n", whole.replace(b"/Pages", b"/Sages"), *odd]


@pytest.mark.parametrize("data", damaged_files())
def test_damaged_pdf_is_repaired_or_refused_with_a_code(data: bytes) -> None:
    try:
        made = searchable(data, text_page((417, 209), "found"))
    except UndecodableError:
        return
    assert words_of(made).strip() == "found"


def test_page_that_qpdf_does_not_find_is_refused() -> None:
    document = OpenDocument(Document(scan(), LIMITS))
    with pytest.raises(UndecodableError):
        document.searchable_pdf(TextTask((text_page((417, 209), "x", page=2),)))


def test_same_document_gives_the_same_bytes() -> None:
    task = text_page((320, 200), "Hello")
    assert searchable(encode(page_image()), task) == searchable(encode(page_image()), task)
    assert searchable(scan(), task) == searchable(scan(), task)


@pytest.mark.parametrize("turn", [90, 180, 270])
@pytest.mark.parametrize("as_pdf", [False, True])
def test_text_of_a_page_that_was_turned_is_where_the_page_has_it(turn: Turn, as_pdf: bool) -> None:
    upright = (300, 200)
    uploaded = upright if turn == 180 else upright[::-1]
    upload = encode(picture(uploaded), "PNG", dpi=(72, 72))
    if as_pdf:
        upload = searchable(upload, text_page(uploaded))
    line = TextLine("corner", (0, 0, 60, 20))
    pdf = searchable(upload, TextPage(1, *upright, (line,), turn))
    x, y = place_of(pdf, "corner", uploaded)
    # The upper left corner of the upright page is another one of the uploaded page.
    expected = {90: (10, 270), 180: (270, 190), 270: (190, 30)}[turn]
    assert abs(x - expected[0]) < 12
    assert abs(y - expected[1]) < 12
    np.testing.assert_allclose(shown(pdf, uploaded), shown(upload, uploaded) if as_pdf else picture(uploaded), atol=3)
