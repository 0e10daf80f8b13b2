"""TIFF files as scanners, Photoshop and GDAL write them: every kind is right or refused, and only pages are pages."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from shared.images.errors import ImageError, ImageReason
from shared.images.limits import ImageLimits
from shared.images.raster import open_raster
from tests.support.scene import assert_looks_like, encode, scene
from tests.support.tiff import DEFLATE, TiffPage, make_tiff

LIMITS = ImageLimits(max_frames=4)
UNCOMPRESSED, WEBP, LERC, JPEG2000 = 1, 50001, 34887, 34712
REDUCED, SHEET, MASK = 1, 2, 4
GREY = np.asarray(scene())[:, :, None]
OPAQUE = np.full_like(GREY, 255)
CMYK = np.asarray(scene().convert("RGB").convert("CMYK"))

KINDS: dict[str, tuple[NDArray, int, tuple[int, ...]]] = {
    "grey": (GREY, 1, ()),
    "white is zero": (255 - GREY, 0, ()),
    "rgb": (np.repeat(GREY, 3, 2), 2, ()),
    "rgb and alpha": (np.concatenate([np.repeat(GREY, 3, 2), OPAQUE], 2), 2, (2,)),
    "rgb and more": (np.concatenate([np.repeat(GREY, 3, 2), OPAQUE], 2), 2, (0,)),
    "grey and alpha": (np.concatenate([GREY, OPAQUE], 2), 1, (2,)),
    "cmyk": (CMYK, 5, ()),
    "cmyk and alpha": (np.concatenate([CMYK, OPAQUE], 2), 5, (2,)),
    "cmyk and premultiplied alpha": (np.concatenate([CMYK, OPAQUE], 2), 5, (1,)),
}
NOT_READ_IN_16_BITS = {"grey and alpha", "cmyk and alpha", "cmyk and premultiplied alpha"}
"""In one plane; Pillow has no such mode."""


def read_first(data: bytes) -> None:
    file = open_raster(data, LIMITS)
    file.read(file.pages()[0])


def refusal(data: bytes) -> ImageReason:
    with pytest.raises(ImageError) as refused:
        read_first(data)
    return refused.value.reason


@pytest.mark.parametrize("compression", [UNCOMPRESSED, DEFLATE])
@pytest.mark.parametrize("is_tiled", [False, True])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_seen_or_refused(kind: str, order: str, is_tiled: bool, compression: int) -> None:
    samples, photometric, extra = KINDS[kind]
    for planar in (1, 2) if samples.shape[2] > 1 else (1,):
        for stored in (samples, samples.astype(np.uint16) * 257):
            page = TiffPage(stored, photometric, planar, extra, is_tiled, compression=compression)
            data = make_tiff(page, order=order)
            is_read = stored.itemsize == 1 or kind not in NOT_READ_IN_16_BITS
            if is_read or (planar == 2 and photometric == 5):
                assert_looks_like(data, scene(), tolerance=1)
            else:
                assert refusal(data) is ImageReason.UNSUPPORTED_PIXELS


def test_big_tiff() -> None:
    assert_looks_like(make_tiff(TiffPage(GREY), is_big=True), scene())


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i2", "i4", "u4", "u8"])
def test_numbers_that_are_no_levels_of_grey_are_called_that(kind: str, order: str) -> None:
    assert refusal(make_tiff(TiffPage(GREY.astype(kind)), order=order)) is ImageReason.UNSUPPORTED_PIXELS


@pytest.mark.parametrize("compression", [WEBP, LERC, JPEG2000, 65000])
def test_compression_that_is_not_read_is_called_that(compression: int) -> None:
    data = make_tiff(TiffPage(np.repeat(GREY, 3, 2), 2, compression=compression))
    assert refusal(data) is ImageReason.UNSUPPORTED_PIXELS


def test_compressed_data_that_are_damaged_are_called_damaged() -> None:
    data = bytearray(encode(scene(), "TIFF", compression="tiff_deflate"))
    strip = data.index(b"\x78")
    data[strip : strip + 8] = b"\xff" * 8
    assert refusal(bytes(data)) is ImageReason.DAMAGED


@pytest.mark.parametrize("cut", [4, 8, 9, 20, 60])
def test_a_file_that_ends_in_its_header_is_damaged(cut: int) -> None:
    data = encode(scene(), "TIFF")
    start = int.from_bytes(data[4:8], "little")
    assert refusal(data[: cut if cut < 9 else start + cut]) is ImageReason.DAMAGED


def numbered(value: int, *, width: int = 40, subfile: int = 0, old: int | None = None) -> TiffPage:
    return TiffPage(np.full((30, width, 1), value, np.uint8), subfile=subfile, old_subfile=old)


def values(data: bytes, selection: tuple[int, ...] | None = None) -> list[int]:
    file = open_raster(data, LIMITS)
    return [int(np.asarray(file.read(page).image)[0, 0, 0]) for page in file.pages(selection)]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    "other",
    [
        numbered(9, width=10, subfile=REDUCED),
        numbered(9, subfile=MASK),
        numbered(9, subfile=REDUCED | MASK),
        numbered(9, width=10, old=2),
    ],
)
def test_thumbnails_overviews_and_masks_are_no_pages(other: TiffPage, order: str) -> None:
    assert values(make_tiff(numbered(1), other, order=order)) == [1]
    assert values(make_tiff(other, numbered(1), other, numbered(2, subfile=SHEET), other, order=order)) == [1, 2]


def test_a_mask_that_pillow_cannot_open_does_not_hide_later_pages() -> None:
    mask = TiffPage(np.full((30, 40, 1), 1, np.uint8), photometric=4, subfile=MASK)
    assert values(make_tiff(numbered(1), mask, numbered(2))) == [1, 2]


def test_pages_are_numbered_without_what_is_no_page() -> None:
    data = make_tiff(numbered(9, subfile=REDUCED), numbered(1), numbered(9, subfile=MASK), numbered(2), numbered(3))
    assert values(data, (2,)) == [2]
    assert values(data, (1, 3)) == [1, 3]
    with pytest.raises(ImageError) as refused:
        values(data, (4,))
    assert (refused.value.reason, refused.value.facts) == (ImageReason.NO_SUCH_PAGE, {"pages": 3})


def test_images_that_are_all_marked_as_copies_are_pages() -> None:
    assert values(make_tiff(numbered(1, subfile=REDUCED))) == [1]
    assert values(make_tiff(numbered(1, subfile=REDUCED), numbered(2, subfile=REDUCED))) == [1, 2]


def test_too_many_pages_are_refused_and_thumbnails_do_not_count() -> None:
    thumbnails = [numbered(9, subfile=REDUCED)] * 4
    assert values(make_tiff(*[numbered(each) for each in range(4)], *thumbnails)) == [0, 1, 2, 3]
    assert refusal(make_tiff(*[numbered(each) for each in range(5)])) is ImageReason.TOO_MANY_PAGES


def test_directories_that_point_at_each_other_end() -> None:
    data = bytearray(make_tiff(numbered(1), numbered(2)))
    first = int.from_bytes(data[4:8], "little")
    data[-4:] = first.to_bytes(4, "little")
    assert values(bytes(data)) == [1, 2]


def test_a_later_page_that_is_too_large_is_refused_by_its_header() -> None:
    file = open_raster(make_tiff(numbered(1), numbered(2, width=200)), ImageLimits(max_pixels=3000))
    assert file.pages() == (1, 2)
    assert file.read(1).image.size == (40, 30)
    with pytest.raises(ImageError) as refused:
        file.read(2)
    assert refused.value.reason is ImageReason.TOO_MANY_PIXELS


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_known_before_pixels_are(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for file_format in ("TIFF", "JPEG", "PNG", "WEBP"):
        file = open_raster(encode(scene(), file_format, exif=exif.tobytes()), LIMITS)
        assert file.upright_size() == file.read(1).image.size


@pytest.mark.parametrize("orientation", [1, 6])
def test_faxes_of_oblong_pixels_are_seen_as_they_were_sent(orientation: int) -> None:
    square = scene()
    sent = square.resize((square.width, round(square.height / 2)), Image.Resampling.BOX)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = open_raster(encode(sent, "TIFF", dpi=(204, 102), exif=exif.tobytes()), LIMITS)
    seen = file.read(1)
    shown = square.transpose(Image.Transpose.ROTATE_270) if orientation == 6 else square
    assert abs(seen.image.height - shown.height) <= 2
    assert file.upright_size() == seen.image.size
    assert seen.stretch == ((2.0, 1.0) if orientation == 6 else (1.0, 2.0))
    difference = np.abs(
        np.asarray(seen.image.convert("L").resize(shown.size), int) - np.asarray(shown.convert("L"), int)
    )
    assert difference.mean() < 8


@pytest.mark.parametrize("dpi", [(204, 196), (300, 1), (0, 100), None], ids=str)
def test_pixels_of_usual_or_impossible_resolutions_stay(dpi: tuple[int, int] | None) -> None:
    options = {} if dpi is None else {"dpi": dpi}
    seen = open_raster(encode(scene(), "TIFF", **options), LIMITS).read(1)
    assert seen.image.size == scene().size
    assert seen.stretch == (1.0, 1.0)


def test_a_fax_that_would_be_too_large_is_read_as_it_is() -> None:
    width, height = scene().size
    limits = ImageLimits(max_pixels=width * height)
    assert open_raster(encode(scene(), "TIFF", dpi=(200, 100)), limits).read(1).image.size == (width, height)
