"""Formats beyond PNG, JPEG and TIFF: those that are read, and what is said of those that are not."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from shared.images import raster
from shared.images.errors import ImageError, ImageReason
from shared.images.formats import SUFFIXES, FileFormat, detect_format
from shared.images.limits import ImageLimits
from shared.images.other_formats import recognise
from shared.images.raster import RasterFile, open_raster
from tests.support.scene import HEIC, assert_looks_like, encode, scene


def read_first(data: bytes) -> None:
    file = open_raster(data, ImageLimits(max_pixels=100_000, max_side_px=2000))
    file.read(file.pages()[0])


def refused(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as error:
        read_first(data)
    return error.value


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
@pytest.mark.parametrize("pillow_format", ["GIF", "BMP"])
def test_gif_and_bmp(pillow_format: str, mode: str) -> None:
    image = scene().convert(mode, dither=Image.Dither.NONE)
    assert_looks_like(encode(image, pillow_format), image.convert("RGB"))


@pytest.mark.parametrize("no_jp2", [False, True])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_jpeg_2000(mode: str, no_jp2: bool) -> None:
    data = encode(scene().convert(mode), "JPEG2000", no_jp2=no_jp2)
    assert detect_format(data) is FileFormat.JPEG2000
    assert_looks_like(data, scene())


def test_jpeg_2000_of_16_bits() -> None:
    samples = np.asarray(scene()).astype(np.uint16) * 257
    assert_looks_like(encode(Image.fromarray(samples), "JPEG2000"), scene(), tolerance=1)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_avif_is_upright(orientation: int) -> None:
    undo = {1: 0, 3: 180, 6: 90, 8: 270}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = scene().convert("RGB").rotate(undo, expand=True)
    assert_looks_like(encode(stored, "AVIF", quality=100, exif=exif.tobytes()), scene(), tolerance=4)


def test_bmp_with_an_unused_alpha_channel_is_opaque() -> None:
    layer = scene().convert("RGB")
    layer.putalpha(0)
    assert_looks_like(encode(layer, "BMP"), scene())


def test_kind_of_bmp_that_is_not_read_is_called_that() -> None:
    data = bytearray(encode(scene(), "BMP"))
    data[30:34] = (4).to_bytes(4, "little")
    assert refused(bytes(data)).reason is ImageReason.UNSUPPORTED_PIXELS


def animation(pillow_format: str) -> bytes:
    frames = [Image.new("RGB", (64, 48), (value, value, value)) for value in (40, 120, 200)]
    return encode(frames[0], pillow_format, save_all=True, append_images=frames[1:], duration=100)


@pytest.mark.parametrize("pillow_format", ["GIF", "PNG", "WEBP", "AVIF"])
def test_an_animation_is_its_first_frame_unless_others_are_chosen(pillow_format: str) -> None:
    file = open_raster(animation(pillow_format), ImageLimits())
    assert file.pages() == (1,)
    for page, value in ((1, 40), (3, 200), (2, 120)):
        assert file.pages((page,)) == (page,)
        seen = file.read(page)
        assert np.abs(np.asarray(seen.image).astype(int) - value).max() <= 4
        assert not seen.is_plain
    assert file.pages((1, 3)) == (1, 3)
    with pytest.raises(ImageError) as error:
        file.pages((2, 4))
    assert (error.value.reason, error.value.facts) == (ImageReason.NO_SUCH_PAGE, {"pages": 3})


@pytest.mark.parametrize("pillow_format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "AVIF"])
def test_large_images_are_refused_before_their_pixels_are_decoded(
    pillow_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = encode(Image.new("L", (400, 300), 255), pillow_format)
    long = encode(Image.new("L", (2100, 16), 255), pillow_format)

    def loaded(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(raster, "as_seen", loaded)
    for data in (large, long):
        assert refused(data).reason is ImageReason.TOO_MANY_PIXELS


def test_every_image_format_has_suffixes_and_is_opened() -> None:
    assert set(SUFFIXES) == set(FileFormat)
    Image.init()
    opened = {"JPEG2000" if each is FileFormat.JPEG2000 else each.upper() for each in FileFormat}
    assert opened - {"PDF", "HEIC"} <= set(Image.OPEN)


def test_heic() -> None:
    pytest.importorskip("pi_heif")
    assert detect_format(HEIC) is FileFormat.HEIC
    assert_looks_like(HEIC, scene(), tolerance=40)
    for cut in range(12, len(HEIC), 23):
        assert refused(HEIC[:cut]).reason in (ImageReason.DAMAGED, ImageReason.UNSUPPORTED_FORMAT)
    with pytest.raises(ImageError) as error:
        RasterFile(HEIC, FileFormat.HEIC, ImageLimits()).pages((2,))
    assert error.value.reason is ImageReason.NO_SUCH_PAGE
    with pytest.raises(ImageError) as error:
        RasterFile(HEIC, FileFormat.HEIC, ImageLimits(max_pixels=1000)).pages()
    assert error.value.reason is ImageReason.TOO_MANY_PIXELS


def test_heic_without_its_package_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster, "reads_heic", lambda: False)
    error = refused(HEIC)
    assert (error.reason, error.facts["found"]) == (ImageReason.UNSUPPORTED_FORMAT, "a HEIC photograph")
    assert "deepsynth-ocr[heif]" in str(error.facts["advice"])


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, "application/vnd.oasis.opendocument.text" if name == "mimetype" else "content" * 99)
    return stream.getvalue()


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo("page.png")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"page"))
    return stream.getvalue()


OTHERS: dict[str, bytes] = {
    "Word": zipped("[Content_Types].xml", "word/document.xml"),
    "Excel": zipped("[Content_Types].xml", "xl/workbook.xml"),
    "PowerPoint": zipped("[Content_Types].xml", "ppt/presentation.xml"),
    "OpenDocument": zipped("mimetype", "content.xml"),
    "XPS": zipped("FixedDocumentSequence.fdseq"),
    "ZIP": zipped("scan-1.png", "scan-2.png"),
    "Office file": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504),
    "gzip": gzip.compress(b"page"),
    "bzip2": bz2.compress(b"page"),
    "xz": lzma.compress(b"page"),
    "tar": tar(),
    "DjVu": b"AT&TFORM\0\0\0\x20DJVUINFO",
    "PostScript": b"%!PS-Adobe-3.0\n",
    "Photoshop": b"8BPS\0\1" + bytes(60),
    "JPEG XL": b"\xff\x0a" + bytes(60),
    "Netpbm": encode(scene(), "PPM"),
    "icon": encode(scene(), "ICO"),
    "SVG": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "HTML": b"<!DOCTYPE html><html><body>page</body></html>",
    "XML": b'<?xml version="1.0"?><page/>',
    "URL": b"https://host.example/page.png",
    "base64": base64.encodebytes(encode(scene(), "PNG")),
    "plain text": "Grüße\n".encode(),
    "video": b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(40),
    "sound": b"RIFF\x24\0\0\0WAVEfmt ",
    "rich text": b"{\\rtf1\\ansi page}",
    "DICOM": bytes(128) + b"DICM" + bytes(60),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_read_is_named_and_has_a_remedy(name: str) -> None:
    assert detect_format(OTHERS[name]) is None
    error = refused(OTHERS[name])
    assert error.reason is ImageReason.UNSUPPORTED_FORMAT
    assert name.lower() in str(error.facts["found"]).lower()
    assert str(error.facts["advice"]).endswith(".")


@pytest.mark.parametrize("start", ["", "data:image/png;base64,", "data:application/pdf;base64,"])
@pytest.mark.parametrize("encoder", [base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes])
def test_base64_of_a_page_is_known_however_it_is_written(encoder, start: str) -> None:
    for pillow_format in ("PNG", "JPEG", "WEBP", "TIFF"):
        found = recognise(start.encode() + encoder(encode(scene(), pillow_format)))
        assert found is not None
        assert found.name == "base64 text"


def test_words_are_not_taken_for_base64() -> None:
    found = recognise(b"Delivery note")
    assert found is not None
    assert found.name == "plain text"


@pytest.mark.parametrize("data", [b"\x7fELF" + bytes(60), bytes(4096), b"\xfe\xfd\xfc" * 30, b"BM not a bitmap"])
def test_what_is_not_known_gets_no_invented_name(data: bytes) -> None:
    error = refused(data)
    assert error.reason is ImageReason.UNSUPPORTED_FORMAT
    assert error.facts.get("found") in (None, "plain text")


def test_a_pdf_is_not_an_image() -> None:
    assert refused(b"%PDF-1.7\n").facts["found"] == "a PDF"
