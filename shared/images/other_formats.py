"""Says what a file is that cannot be read, and how to make one of it that can."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from shared.images.errors import ImageError, ImageReason
from shared.images.formats import brands_of, detect_format

_HEAD_BYTES = 64 * 1024
_PREFIX_BYTES = 1024
_AS_PDF = "Save or print it as a PDF and send that."
_AS_PNG = "Convert it to PNG and send that."
_UNPACK = "Unpack it and send each file by itself."


@dataclass(frozen=True, slots=True)
class OtherFormat:
    """A known format that is not read."""

    name: str
    advice: str


_STARTS: tuple[tuple[bytes, OtherFormat], ...] = (
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", OtherFormat("an Office file (.doc, .xls, .ppt or .msg)", _AS_PDF)),
    (b"{\\rtf", OtherFormat("a rich text document (.rtf)", _AS_PDF)),
    (b"%!PS", OtherFormat("PostScript", "Convert it to PDF, for example with ps2pdf, and send that.")),
    (b"\xc5\xd0\xd3\xc6", OtherFormat("encapsulated PostScript (.eps)", "Convert it to PDF and send that.")),
    (b"AT&TFORM", OtherFormat("DjVu", "Convert it to PDF, for example with ddjvu -format=pdf, and send that.")),
    (b"\x1f\x8b", OtherFormat("a gzip archive (.gz)", _UNPACK)),
    (b"BZh", OtherFormat("a bzip2 archive (.bz2)", _UNPACK)),
    (b"\xfd7zXZ\0", OtherFormat("an xz archive (.xz)", _UNPACK)),
    (b"\x28\xb5\x2f\xfd", OtherFormat("a Zstandard archive (.zst)", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", OtherFormat("a 7-Zip archive (.7z)", _UNPACK)),
    (b"Rar!\x1a\x07", OtherFormat("a RAR archive (.rar)", _UNPACK)),
    (b"8BPS", OtherFormat("a Photoshop document (.psd)", "Export it as PNG and send that.")),
    (b"\xff\x0a", OtherFormat("JPEG XL", _AS_PNG)),
    (b"\0\0\0\x0cJXL \r\n\x87\n", OtherFormat("JPEG XL", _AS_PNG)),
    (b"II\xbc\x01", OtherFormat("JPEG XR", _AS_PNG)),
    (b"\x97JB2\r\n\x1a\n", OtherFormat("JBIG2", _AS_PNG)),
    (b"\0\0\1\0", OtherFormat("an icon (.ico)", _AS_PNG)),
    (b"DDS ", OtherFormat("a DirectDraw surface (.dds)", _AS_PNG)),
    (b"qoif", OtherFormat("QOI", _AS_PNG)),
    (b"\xd7\xcd\xc6\x9a", OtherFormat("a Windows metafile (.wmf)", _AS_PNG)),
    (b"\x1aE\xdf\xa3", OtherFormat("a Matroska or WebM video", "Send single frames as PNG or JPEG.")),
)
_MARKS: tuple[tuple[int, bytes, OtherFormat], ...] = (
    (257, b"ustar", OtherFormat("a tar archive", _UNPACK)),
    (128, b"DICM", OtherFormat("a DICOM file", _AS_PNG)),
    (0, b"RIFF", OtherFormat("a sound or video file", "Send pages or single frames as PNG or JPEG.")),
    *((0, b"P%c\n" % kind, OtherFormat("a Netpbm image (.pbm, .pgm, .ppm or .pam)", _AS_PNG)) for kind in b"1234567"),
)
"""Position, bytes there, and format."""
_IN_ZIP: tuple[tuple[bytes, OtherFormat], ...] = (
    (b"word/document", OtherFormat("a Word document (.docx)", _AS_PDF)),
    (b"xl/workbook", OtherFormat("an Excel workbook (.xlsx)", _AS_PDF)),
    (b"ppt/presentation", OtherFormat("a PowerPoint presentation (.pptx)", _AS_PDF)),
    (b"vnd.oasis.opendocument", OtherFormat("an OpenDocument file (.odt, .ods or .odp)", _AS_PDF)),
    (b"application/epub+zip", OtherFormat("an EPUB book", "Convert it to PDF and send that.")),
    (b".fdseq", OtherFormat("an XPS document", _AS_PDF)),
)
_ZIP = OtherFormat("a ZIP archive", _UNPACK)
_VIDEO = OtherFormat("a video", "Send single frames as PNG or JPEG.")
_SVG = OtherFormat("an SVG drawing", "Convert it to PNG or PDF and send that.")
_HTML = OtherFormat("a web page (HTML)", _AS_PDF)
_XML = OtherFormat("XML", "Send the page itself as an image or PDF.")
_BASE64 = OtherFormat("base64 text", "Decode it and send the bytes of the image or PDF.")
_URL = OtherFormat("a URL", "Download the file and send its content; the service fetches nothing.")
_TEXT = OtherFormat("plain text", "There is nothing to recognise; send an image or PDF of a page.")
PDF = OtherFormat("a PDF", "Save each page as an image.")
"""Where only images are read."""
HEIC = OtherFormat(
    "a HEIC photograph",
    "Convert it to JPEG (on an iPhone: Settings, Camera, Formats, Most Compatible), or install the extra heif where "
    "it is read: pip install 'deepsynth-ocr[heif]'.",
)

_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_BASE64_TEXT = re.compile(rb"[A-Za-z0-9+/_\-\s]+={0,2}\s*")


def unsupported(other: OtherFormat | None) -> ImageError:
    """The error for a file in another format; None: nothing is known about it."""
    facts = {} if other is None else {"found": other.name, "advice": other.advice}
    return ImageError(ImageReason.UNSUPPORTED_FORMAT, facts=facts)


def recognise(data: bytes | bytearray | memoryview) -> OtherFormat | None:
    """Recognise a file that `detect_format` does not.

    Args:
        data: The file.

    Returns:
        What it is; None if nothing is known about it.
    """
    head = bytes(data[:_HEAD_BYTES])
    found = next((other for start, other in _STARTS if head.startswith(start)), None)
    found = found or next((other for at, mark, other in _MARKS if head.startswith(mark, at)), None)
    if found is not None:
        return found
    if head.startswith(b"PK\x03\x04"):
        # A ZIP file's list of names is at its end.
        names = head + bytes(data[-_HEAD_BYTES:])
        return next((other for mark, other in _IN_ZIP if mark in names), _ZIP)
    return _VIDEO if brands_of(head) else _text_kind(head)


def _text_kind(head: bytes) -> OtherFormat | None:
    start = head[:_PREFIX_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start or b"\0" in head:
        return None
    if start.startswith((b"<?xml", b"<svg", b"<!doctype", b"<html", b"<")):
        if b"<svg" in start:
            return _SVG
        return _HTML if b"<html" in start or b"<!doctype html" in start else _XML
    if start.startswith((b"data:image/", b"data:application/pdf")) or is_base64_of_a_file(head):
        return _BASE64
    if start.startswith((b"http://", b"https://", b"file://", b"s3://")):
        return _URL
    return _TEXT if _is_text(head) else None


def is_base64_of_a_file(head: bytes) -> bool:
    """Whether it is base64 of a format that is known, so that no plain word counts."""
    text = head[:_PREFIX_BYTES].strip()
    if not _BASE64_TEXT.fullmatch(text):
        return False
    letters = b"".join(text.split()).rstrip(b"=").translate(_URL_SAFE)
    try:
        start = base64.b64decode(letters[: len(letters) // 4 * 4])
    except (binascii.Error, ValueError):
        return False
    return detect_format(start) is not None or any(start.startswith(mark) for mark, _ in _STARTS)


def _is_text(head: bytes) -> bool:
    try:
        # The last character may be cut in two.
        text = head.decode("utf-8") if len(head) < _HEAD_BYTES else head[:-3].decode("utf-8", "ignore")
    except UnicodeDecodeError:
        return False
    return bool(text.strip()) and all(letter.isprintable() or letter in "\t\r\n\f" for letter in text[:_PREFIX_BYTES])
