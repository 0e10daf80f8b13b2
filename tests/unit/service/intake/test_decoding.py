"""Limits, damage and disguise, without processes around them."""

from __future__ import annotations

import base64
import contextlib
import io
import math
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from service.errors import (
    AspectRatioError,
    DeepSynthError,
    EmptyFileError,
    PageOutOfRangeError,
    PdfEncryptedError,
    TooManyPagesError,
    TooManyPixelsError,
    UndecodableError,
    UnsupportedFormatError,
    UnsupportedPixelsError,
)
from service.intake.decoding import OpenDocument
from service.intake.document import Document, contents_by_format
from service.intake.formats import FileFormat, detect_format
from service.intake.limits import DecodeTask, IntakeLimits
from service.intake.pages import DecodedPage
from service.intake.pdf import fitting_scale, has_user_units, open_pdf
from service.intake.preview import PreviewTask
from shared.deepseek_ocr.forms import PageImage, PageViews
from shared.deepseek_ocr.geometry import PADDING_GREY, GeometryConfig, Mode
from shared.deepseek_ocr.nano_config import NANO_GEOMETRY
from shared.images.canvases import LARGE_EM_PX
from shared.images.ink import find_ink
from shared.images.page_ink import Turn
from tests.support.pdf import make_pdf
from tests.support.printed import two_columns
from tests.support.service import encode, page_image

LIMITS = IntakeLimits(max_pixels=200_000, max_side_px=1000, max_frames=4, max_pdf_pages=3)


def task(page: int = 1) -> DecodeTask:
    return DecodeTask(page, Mode.SMALL, GeometryConfig())


def opened(data: bytes, selection: tuple[int, ...] | None = None) -> OpenDocument:
    return OpenDocument(Document(data, LIMITS, selection))


def decode(data: bytes, wanted: DecodeTask) -> DecodedPage:
    return opened(data).decode(wanted)


def open_page(
    data: bytes, selection: tuple[int, ...] | None = None, position: int = 0
) -> tuple[FileFormat, tuple[int, ...], Image.Image]:
    """The format, the pages there are to read, and the one at a position among them."""
    document = opened(data, selection)
    contents = document.contents
    return contents.file_format, contents.pages, document.page_image(contents.pages[position])[0]


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))

    header = struct.pack("!IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def outcome(data: bytes) -> int:
    """Status a client would see; anything but a known error fails the test."""
    try:
        open_page(data)
    except DeepSynthError as error:
        return error.status
    return 200


def frames(file_format: str, count: int) -> bytes:
    images = [page_image(str(number), (40 + number, 30)) for number in range(1, count + 1)]
    if file_format != "TIFF":
        images = [page_image(str(number), (40, 30)) for number in range(1, count + 1)]
    return encode(images[0], file_format, save_all=True, append_images=images[1:])


def test_task_survives_the_wire() -> None:
    wanted = replace(task(3), lines_from_views=1, em_px=LARGE_EM_PX, scale=1.25)
    assert DecodeTask.from_wire(wanted.to_wire()) == wanted


def test_page_becomes_its_views() -> None:
    page = decode(encode(page_image()), task())
    assert (page.width_px, page.height_px, page.page) == (320, 200, 1)
    assert page.prepared.global_view_HWC.shape == (640, 640, 3)
    assert page.prepared.tiles_THWC.shape[0] == 0
    assert not page.ink.is_blank


@pytest.mark.parametrize("scale", [0.8, 1.25])
def test_page_of_one_view_at_another_size_stays_the_same_but_for_its_view(scale: float) -> None:
    small = replace(task(), geometry=NANO_GEOMETRY, mode=NANO_GEOMETRY.default_mode)
    own, other = (decode(encode(page_image()), replace(small, scale=value)) for value in (1.0, scale))
    is_shown = (other.prepared.global_view_HWC != PADDING_GREY).any(axis=2)
    assert (int(is_shown.any(axis=0).sum()), int(is_shown.any(axis=1).sum())) == (320 * scale, 200 * scale)
    assert other.prepared.plan == own.prepared.plan
    assert (other.width_px, other.height_px, other.ink) == (own.width_px, own.height_px, own.ink)


def test_blank_page_is_noticed() -> None:
    assert decode(encode(Image.new("RGB", (50, 50), "white")), task()).ink.is_blank


@pytest.mark.parametrize(
    ("width", "height"), [(1001, 10), (10, 1001), (500, 401), (65_500, 65_500), (2_000_000_000, 2_000_000_000)]
)
def test_too_many_pixels_are_refused_by_the_header(width: int, height: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with pytest.raises(TooManyPixelsError):
            open_page(png_header(width, height))


def test_limit_itself_is_allowed() -> None:
    assert open_page(encode(Image.new("1", (500, 400))))[2].size == (500, 400)


def test_bomb_in_a_later_frame_is_refused() -> None:
    images = [Image.new("1", (10, 10)), Image.new("1", (999, 999))]
    data = encode(images[0], "TIFF", save_all=True, append_images=images[1:], compression="group4")
    assert open_page(data)[2].size == (10, 10)
    with pytest.raises(TooManyPixelsError):
        open_page(data, position=1)
    with pytest.raises(TooManyPixelsError):
        open_page(data, (2,))


def test_sliver_is_refused() -> None:
    with pytest.raises(AspectRatioError):
        open_page(encode(Image.new("L", (402, 2))))


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (7, 3), (3, 500)])
def test_tiny_page_is_read(size: tuple[int, int]) -> None:
    assert decode(encode(Image.new("RGB", size, "white")), task()).width_px == size[0]


def test_empty_file_is_said_to_be_empty() -> None:
    with pytest.raises(EmptyFileError):
        open_page(b"")


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_every_truncation_is_refused(file_format: str) -> None:
    options = {"compression": "tiff_deflate"} if file_format == "TIFF" else {}
    data = encode(page_image(), file_format, **options)
    # The last 16 bytes of a PNG are a checksum and the end mark: without them every pixel is still there.
    cuts = sorted({*range(1, 64), *range(64, len(data) - 16, max(len(data) // 60, 1))})
    survivors = [cut for cut in cuts if outcome(data[:cut]) not in (415, 422)]
    assert survivors == []


def test_truncated_pdf_is_refused_or_read_but_never_a_crash() -> None:
    data = make_pdf(["one"])
    for cut in range(1, len(data), 7):
        assert outcome(data[:cut]) in (200, 415, 422)


@pytest.mark.parametrize("flip", range(0, 400, 3))
def test_damaged_bytes_never_escape_as_an_unknown_error(flip: int) -> None:
    data = bytearray(encode(page_image(), "TIFF" if flip % 2 else "PNG"))
    data[flip % len(data)] ^= 0xA5
    assert outcome(bytes(data)) in (200, 413, 415, 422)


def writable_formats() -> list[str]:
    Image.init()
    read = {"PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "AVIF", "PDF", "MPO"}
    return sorted(set(Image.SAVE) - read)


def write_somehow(file_format: str) -> bytes:
    for mode in ("RGB", "L", "1", "P"):
        buffer = io.BytesIO()
        with warnings.catch_warnings(), contextlib.suppress(OSError, ValueError, KeyError, RuntimeError):
            warnings.simplefilter("ignore", DeprecationWarning)
            Image.new(mode, (32, 32)).save(buffer, file_format)
            return buffer.getvalue()
    return b"no writer here, but a name all the same: " + file_format.encode()


@pytest.mark.parametrize("file_format", writable_formats())
def test_other_format_under_a_served_name_is_refused(file_format: str) -> None:
    with pytest.raises(UnsupportedFormatError):
        open_page(write_somehow(file_format))


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"PK\x03\x04" + b"\0" * 60,
        b"<!doctype html><script>1</script>",
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"\x7fELF" + b"\0" * 60,
        b"SIMPLE  =                    T",
        b"8BPS\0\1" + b"\0" * 60,
        b"\x89HDF\r\n\x1a\n",
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"http://127.0.0.1/page.png",
        b"\0" * 4096,
    ],
)
def test_other_content_is_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedFormatError):
        open_page(data)


def test_all_pages_of_a_tiff_come_in_order() -> None:
    data = frames("TIFF", 3)
    widths = [open_page(data, position=position)[2].width for position in range(3)]
    assert widths == [41, 42, 43]
    assert open_page(data)[1] == (1, 2, 3)


def test_selected_pages_of_a_tiff() -> None:
    file_format, pages, page = open_page(frames("TIFF", 4), (2, 4), 1)
    assert (file_format, pages, page.width) == ("tiff", (2, 4), 44)


def test_too_many_frames_are_refused_without_counting_them_all() -> None:
    with pytest.raises(TooManyPagesError):
        open_page(frames("TIFF", 5))


@pytest.mark.parametrize("file_format", ["TIFF", "PNG", "WEBP"])
def test_frame_that_is_not_there(file_format: str) -> None:
    with pytest.raises(PageOutOfRangeError):
        open_page(frames(file_format, 2), (3,))


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "GIF"])
def test_animation_is_its_first_frame_unless_others_are_selected(file_format: str) -> None:
    data = frames(file_format, 3)
    assert open_page(data)[1] == (1,)
    assert open_page(data, (2, 3))[1] == (2, 3)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: b"PK\x03\x04" + b"\0" * 60, UnsupportedFormatError),
        (lambda: encode(Image.new("F", (32, 32)), "TIFF"), UnsupportedPixelsError),
        (lambda: encode(page_image())[:300], UndecodableError),
        (lambda: encode(Image.new("1", (999, 999))), TooManyPixelsError),
        (lambda: encode(Image.new("L", (402, 2))), AspectRatioError),
        (lambda: frames("TIFF", 5), TooManyPagesError),
    ],
)
def test_reasons_of_images_are_errors_of_the_service(make: Callable[[], bytes], error: type[DeepSynthError]) -> None:
    with pytest.raises(error):
        open_page(make())


def test_what_a_refused_file_is_reaches_the_client() -> None:
    with pytest.raises(UnsupportedFormatError) as refused:
        opened(base64.b64encode(encode(page_image())))
    assert refused.value.public["found"] == "base64 text"
    assert str(refused.value.public["advice"])


def test_a_jpeg_that_lacks_a_corner_is_damaged_and_read() -> None:
    data = encode(page_image("words", (300, 300)), "JPEG", quality=90)
    for end, is_damaged in ((None, False), (-2, False), (-40, True)):
        assert decode(data[:end], task()).is_damaged is is_damaged
    with pytest.raises(UndecodableError):
        decode(data[: len(data) // 2 - 200], task())


def test_pdf_page_is_rendered_at_the_set_resolution() -> None:
    _, pages, page = open_page(make_pdf(["one", "two"], size_pt=(144, 72)), (2,))
    assert (pages, page.size, page.mode) == ((2,), (300, 150), "RGB")
    assert page.getextrema()[0][0] < 64


def test_pdf_with_too_many_pages_is_refused() -> None:
    with pytest.raises(TooManyPagesError):
        open_page(make_pdf(["page"] * 4, size_pt=(72, 72)))


def test_pdf_page_that_is_not_there() -> None:
    with pytest.raises(PageOutOfRangeError):
        open_page(make_pdf(["one"], size_pt=(72, 72)), (2,))


@pytest.mark.parametrize(
    ("size_pt", "most_px"),
    [((3168, 4320), LIMITS.max_pixels), ((226, 6500), 1000 * 36), ((14_400, 14_400), LIMITS.max_pixels)],
)
def test_a_sheet_too_large_for_the_resolution_is_drawn_at_one_that_fits(size_pt, most_px: int) -> None:
    page = open_page(make_pdf(["sheet"], size_pt=size_pt))[2]
    assert max(page.size) <= LIMITS.max_side_px
    assert 0.95 * most_px < page.width * page.height <= most_px
    assert page.height / page.width == pytest.approx(size_pt[1] / size_pt[0], rel=0.03)


def test_a_roll_longer_than_any_page_is_refused() -> None:
    with pytest.raises(AspectRatioError):
        open_page(make_pdf(["roll"], size_pt=(50, 14_000)))


@pytest.mark.parametrize("size_pt", [(0.01, 100_000), (7, 13), (99_999, 100_001), (720.5, 3.1)])
@pytest.mark.parametrize("dpi", [72, 150, 4000])
def test_drawn_page_is_within_the_limits(size_pt: tuple[float, float], dpi: int) -> None:
    wanted = dpi / 72
    scale = fitting_scale(*size_pt, wanted, LIMITS)
    width_px, height_px = (math.ceil(side * scale) for side in size_pt)
    assert 0 < scale <= wanted
    assert max(width_px, height_px) <= LIMITS.max_side_px
    assert width_px * height_px <= LIMITS.max_pixels


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize(("unit", "size"), [(b"4", (416, 208)), (b"1.5", (156, 78)), (b"0", (104, 52))])
def test_user_unit_scales_the_page(unit: bytes, size: tuple[int, int], is_compressed: bool) -> None:
    data = make_pdf(["unit"], size_pt=(50, 25), user_unit=unit, is_compressed=is_compressed)
    assert open_page(data)[2].size == pytest.approx(size, abs=3)


def test_user_unit_is_that_of_the_page_alone() -> None:
    data = make_pdf(["one", "two"], size_pt=(50, 25))
    assert not has_user_units(data)
    # A name of the same length that means nothing, so that offsets stay as they are.
    data = make_pdf(["one", "two"], size_pt=(50, 25), user_unit=b"4")
    at = data.rindex(b"/UserUnit")
    data = data[:at] + b"/UserOnce" + data[at + 9 :]
    assert [open_page(data, position=each)[2].width for each in (0, 1)] == pytest.approx([416, 104], abs=3)


def test_protected_pdf_says_so() -> None:
    with pytest.raises(PdfEncryptedError):
        open_page(make_pdf(["secret"], encrypted=True))


def test_content_decides_not_the_first_letters_of_a_pdf() -> None:
    assert detect_format(b"\n\n  junk %PDF-1.4") == "pdf"
    assert detect_format(b" " * 2000 + b"%PDF-1.4") is None


@pytest.mark.parametrize(
    ("wants_image", "size", "form"),
    [(True, (400, 300), PageImage), (False, (400, 300), PageViews), (True, (12, 400), PageImage)],
)
def test_page_comes_in_the_form_that_was_asked_for(wants_image: bool, size: tuple[int, int], form: type) -> None:
    data = encode(page_image("form", size))
    page = decode(data, replace(task(), wants_image=wants_image))
    assert type(page.prepared) is form
    assert page.prepared.find_fault(GeometryConfig()) is None
    if isinstance(page.prepared, PageImage):
        np.testing.assert_array_equal(page.prepared.image_HWC, np.asarray(open_page(data)[2]))


def test_page_too_large_for_an_image_comes_as_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.deepseek_ocr.forms.MAX_IMAGE_PIXELS", 1000)
    page = decode(encode(page_image("form", (100, 11))), replace(task(), wants_image=True))
    assert type(page.prepared) is PageViews


@pytest.mark.parametrize("data", [make_pdf(["one", "two", "three"], size_pt=(144, 72)), frames("TIFF", 3)])
def test_pages_of_an_open_document_are_those_of_a_fresh_one(data: bytes) -> None:
    document = opened(data)
    for position in (0, 2, 1, 0):
        page = document.page_image(position + 1)[0]
        assert page.tobytes() == open_page(data, position=position)[2].tobytes()
    document.close()


def test_pdf_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    monkeypatch.setattr("service.intake.decoding.open_pdf", lambda data: parsed.append(data) or open_pdf(data))
    document = opened(make_pdf(["one", "two"]))
    for position in (0, 1):
        document.page_image(position + 1)
    assert len(parsed) == 1


def test_a_part_of_a_page_is_cut_out_upright_and_as_it_is():
    image = Image.new("RGB", (300, 200), "white")
    image.paste((255, 0, 0), (40, 30, 90, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    on_its_side = encode(image.transpose(Image.Transpose.ROTATE_90), exif=exif)
    for data in (encode(image), on_its_side):
        page = decode(data, replace(task(), wants_image=True, cut_px=(40, 30, 90, 60)))
        assert isinstance(page.prepared, PageImage)
        assert page.prepared.image_HWC.shape == (30, 50, 3)
        assert (page.prepared.image_HWC == (255, 0, 0)).all()


def test_a_part_that_is_too_large_to_send_is_made_smaller():
    document = OpenDocument(Document(encode(Image.new("RGB", (4000, 3000))), IntakeLimits()))
    page = document.decode(replace(task(), wants_image=True, cut_px=(0, 0, 4000, 2900)))
    height_px, width_px, _ = page.prepared.arrays[0].shape
    assert (page.width_px, page.height_px) == (width_px, height_px)
    assert 8_900_000 < width_px * height_px <= 9_000_000
    assert width_px / height_px == pytest.approx(4000 / 2900, rel=1e-3)


@pytest.mark.parametrize("box", [(0, 0, 1, 200), (0, 0, 300, 1), (299, 199, 300, 200)])
def test_the_thinnest_part_is_cut_out(box: tuple[int, int, int, int]):
    page = decode(encode(Image.new("RGB", (300, 200))), replace(task(), wants_image=True, cut_px=box))
    assert page.prepared.arrays[0].shape == (box[3] - box[1], box[2] - box[0], 3)


@pytest.mark.parametrize(("turn", "turned"), [(None, 90), (0, 0), (180, 180)])
def test_page_is_turned_by_its_print_or_as_it_is_told(turn: Turn | None, turned: int) -> None:
    upright = two_columns()
    upload = encode(upright.transpose(Image.Transpose.ROTATE_90))
    limits = IntakeLimits(max_pixels=upright.width * upright.height)
    document = OpenDocument(Document(upload, limits))
    page = document.decode(replace(task(), turn_degrees=turn))
    assert page.turned_degrees == turned
    assert (page.width_px, page.height_px) == (upright.size if turned == 90 else upright.size[::-1])
    if turned == 90:
        assert page.ink.lines == find_ink(upright).lines
        part = document.decode(replace(task(), wants_image=True, cut_px=(20, 20, 500, 140), turn_degrees=90))
        assert part.prepared.arrays[0].tolist() == np.asarray(upright.crop((20, 20, 500, 140))).tolist()
        assert len(part.ink.lines) == 2
    preview = document.preview(PreviewTask(1, turn))
    assert (preview.width_px, preview.height_px) == (page.width_px, page.height_px)


@pytest.mark.parametrize("selection", [None, (1,), (2,), (1, 2)])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_contents_that_a_format_tells_are_those_that_opening_finds(
    form: str, selection: tuple[int, ...] | None
) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), "white").save(stream, form)
    document = Document(stream.getvalue(), IntakeLimits(), selection)
    told = contents_by_format(document)
    assert (told is None) == (form == "TIFF" or selection not in (None, (1,)))
    assert told is None or told == OpenDocument(document).contents


@pytest.mark.parametrize("data", [b"", b"text", b"%PDF-1.7"])
def test_no_contents_are_told_of_what_is_no_image(data: bytes) -> None:
    assert contents_by_format(Document(data, IntakeLimits())) is None


@pytest.mark.parametrize("wants_image", [True, False])
@pytest.mark.parametrize("name", ["sample-page", "sample-invoice"])
def test_a_grey_page_is_decoded_as_the_same_page_with_one_coloured_pixel(name: str, wants_image: bool) -> None:
    page = Image.open(f"docs/samples/{name}.png").convert("L").crop((100, 100, 540, 540)).convert("RGB")
    coloured = page.copy()
    coloured.putpixel((0, 0), (255, 255, 254))
    wanted = replace(task(), turn_degrees=None, wants_image=wants_image)
    grey, other = (decode(encode(each, "PNG"), wanted) for each in (page, coloured))
    assert (grey.ink, grey.turned_degrees) == (other.ink, other.turned_degrees)
    for found, expected in zip(grey.prepared.arrays, other.prepared.arrays, strict=True):
        assert found.shape == expected.shape
        # The pixel itself changes a few.
        assert (found != expected).sum() < 50


def shown(image: Image.Image, lines_from_views: int) -> tuple[DecodedPage, np.ndarray]:
    wanted = replace(task(), wants_image=True, lines_from_views=lines_from_views)
    page = OpenDocument(Document(encode(image), IntakeLimits())).decode(wanted)
    assert isinstance(page.prepared, PageImage)
    return page, page.prepared.arrays[0]


def test_askew_crop_is_shown_level_to_a_model_that_reads_lines_and_its_print_stays_where_it_is() -> None:
    crop = two_columns().crop((0, 0, 480, 360)).rotate(5, Image.Resampling.BICUBIC, expand=True, fillcolor="white")
    plain, as_it_is = shown(crop, 0)
    page, level = shown(crop, 2)
    assert np.array_equal(as_it_is, np.asarray(crop))
    # Between lines no row of a level page has ink.
    assert (np.asarray(level).min(axis=(1, 2)) > 200).sum() > (as_it_is.min(axis=(1, 2)) > 200).sum() + 40
    assert page.ink == plain.ink


def test_frame_around_a_word_is_taken_away_for_a_model_that_reads_lines_alone() -> None:
    stamp = Image.new("RGB", (640, 400), "white")
    draw = ImageDraw.Draw(stamp)
    draw.rectangle((100, 100, 400, 180), outline="black", width=3)
    draw.text((130, 115), "COPY", font=ImageFont.load_default(50), fill="black")
    _, as_it_is = shown(stamp, 0)
    _, bare = shown(stamp, 2)
    assert np.array_equal(as_it_is, np.asarray(stamp))
    assert bare[101, 100:400].min() > 200
    assert bare[100:180, 130:380].min() < 50
