"""Opens image files: limits from the header, frames, then one page as a person sees it.

The service and the trainer read images here and nowhere else, so that a model is trained on what it will be shown.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import AvifImagePlugin, Image, UnidentifiedImageError

from shared.images.errors import ImageError, ImageReason, decoding
from shared.images.formats import FileFormat, detect_format
from shared.images.jpeg import JpegFile, read_markers
from shared.images.limits import ImageLimits
from shared.images.other_formats import HEIC, PDF, recognise, unsupported
from shared.images.pixels import SIDEWAYS, as_seen, orientation_of
from shared.images.png import unpacked, without_metadata
from shared.images.tiff import TiffDirectory, codec_is_missing, opened_page, page_directories

_MOST_OF_A_PAGE = 0.5
_PILLOW_NAMES = {FileFormat.HEIC: "HEIF"}
_ONE_PICTURE = ("MPO", "HEIF", "TIFF")
"""Photographs, after which come thumbnails, depth or gain maps that viewers do not show; and TIFF files, which are
opened at one page."""
_SQUARE = (1.0, 1.0)
_LEAST_STRETCH, _MOST_STRETCH = 1.2, 4.0
"""Between them pixels are oblong: faxes have 204 x 98 dots per inch or 204 x 196. More is a fault of the file."""
_PLAIN_FORMATS = (FileFormat.PNG, FileFormat.JPEG, FileFormat.WEBP)
_PLAIN_MODES = ("RGB", "L", "1")

# Image processes run side by side already.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


@dataclass(frozen=True, slots=True)
class SeenPage:
    """A decoded page."""

    image: Image.Image
    """Upright, mode RGB or, where that was allowed, L."""
    is_damaged: bool
    """Whether a part of it is missing."""
    is_plain: bool
    """Whether the file is a PNG, JPEG or WebP that any decoder shows like this without knowing more."""
    stretch: tuple[float, float] = _SQUARE
    """How many times wider and higher than the file's pixels the image is, since those are oblong."""


def reads_heic() -> bool:
    """Whether the package that reads HEIC is installed."""
    return importlib.util.find_spec("pi_heif") is not None


def open_raster(data: bytes, limits: ImageLimits) -> RasterFile:
    """Prepare to read a file that should be an image.

    Args:
        data: The file.
        limits: Limits of it and its pages.

    Returns:
        The file.

    Raises:
        ImageError: It is in no supported format, or a kind of one that is not read.
    """
    file_format = detect_format(data)
    if file_format is None:
        raise unsupported(recognise(data))
    if file_format is FileFormat.PDF:
        raise unsupported(PDF)
    return RasterFile(data, file_format, limits)


class RasterFile:
    """An image file, all of it in memory."""

    def __init__(self, data: bytes, file_format: FileFormat, limits: ImageLimits) -> None:
        """Prepare to read a file.

        Args:
            data: The file.
            file_format: What `detect_format` says, not PDF.
            limits: Limits of it and its pages.

        Raises:
            ImageError: It is a kind that is not read.
        """
        self.file_format = file_format
        self._limits = limits
        self._jpeg: JpegFile | None = None
        self._directories: list[TiffDirectory] = []
        self.upload = data
        self.data = data
        """What the decoder gets: without damage that can be mended, and without a PNG's metadata."""
        if file_format is FileFormat.PNG:
            self.data = without_metadata(data)
        elif file_format is FileFormat.JPEG:
            self._jpeg = read_markers(data)
            self.data = self._jpeg.data
        elif file_format is FileFormat.HEIC:
            _register_heic()
        self._is_mended = self.data is not data

    def pages(self, selection: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Find out which pages to read.

        Args:
            selection: Numbers from 1, rising. None: all pages of a TIFF without its thumbnails and masks, and the first
                frame of an animation.

        Returns:
            Their numbers.

        Raises:
            ImageError: It has too many or too few, or its only page cannot be read.
        """
        with decoding():
            if self.file_format is FileFormat.TIFF:
                pages = self._tiff_pages(selection)
                if len(pages) > 1:
                    # Each page will tell for itself whether it can be read.
                    return pages
            else:
                pages = selection or (1,)
            with self.opened(pages[0]) as image:
                if self.file_format is not FileFormat.TIFF:
                    num_frames = self._num_frames(image)
                    if pages[-1] > num_frames:
                        raise ImageError(ImageReason.NO_SUCH_PAGE, facts={"pages": num_frames})
                self._limits.check_size(*image.size)
            return pages

    def count_pages(self, most: int) -> int:
        """Count the pages that there are to read.

        Args:
            most: Stop there.

        Returns:
            Pages of a TIFF without its thumbnails and masks; 1 for other files, also animations.

        Raises:
            ImageError: The file is damaged.
        """
        if self.file_format is not FileFormat.TIFF:
            return 1
        with decoding():
            return len(page_directories(self.data, most))

    def read(self, page: int, *, may_be_grey: bool = False) -> SeenPage:
        """Decode one page.

        Args:
            page: Its number, from 1.
            may_be_grey: As for `as_seen`.

        Returns:
            The page.

        Raises:
            ImageError: Why it cannot be read, however a library fails on damaged bytes.
        """
        with decoding(), self.opened(page, is_read=True) as image:
            if page > 1 and self.file_format is not FileFormat.TIFF:
                image.seek(page - 1)
            self._limits.check_size(*image.size)
            is_alone = self._num_frames(image) == 1
            stretch = self._stretch(image)
            page_image = self._seen(image, may_be_grey=may_be_grey)
            if stretch != _SQUARE:
                page_image = page_image.resize(_stretched(page_image.size, stretch), Image.Resampling.BILINEAR)
            missing_share = 0.0 if self._jpeg is None else self._jpeg.missing_share(image)
            if missing_share >= _MOST_OF_A_PAGE:
                raise ImageError(ImageReason.DAMAGED, "most of the page is missing")
            is_plain = (
                self.file_format in _PLAIN_FORMATS
                and not self._is_mended
                and is_alone
                and image.mode in _PLAIN_MODES
                and not image.has_transparency_data
                and orientation_of(image) == 1
            )
            return SeenPage(page_image, missing_share > 0, is_plain, stretch)

    def upright_size(self) -> tuple[int, int]:
        """Width and height in pixels that the first page will have; no pixels are decoded, except for PNG files."""
        with decoding(), self.opened(1) as image:
            # Pillow reports a TIFF as it will be once it is loaded.
            if image.format != "TIFF" and orientation_of(image) in SIDEWAYS:
                return image.height, image.width
            return _stretched(image.size, self._stretch(image))

    def _stretch(self, image: Image.Image) -> tuple[float, float]:
        """How many times wider and higher a TIFF that is not loaded yet has to become for its pixels to be square."""
        if self.file_format is not FileFormat.TIFF:
            return _SQUARE
        try:
            horizontal, vertical = (float(each) for each in image.info.get("dpi") or image.info["resolution"])
            ratio = vertical / horizontal if orientation_of(image) in SIDEWAYS else horizontal / vertical
        except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
            return _SQUARE
        if not _LEAST_STRETCH <= max(ratio, 1 / ratio if ratio > 0 else 0) <= _MOST_STRETCH:
            return _SQUARE
        stretch = (1.0, ratio) if ratio > 1 else (1 / ratio, 1.0)
        try:
            self._limits.check_size(*_stretched(image.size, stretch))
        except ImageError:
            # What fits as it is, is read as it is.
            return _SQUARE
        return stretch

    def _tiff_pages(self, selection: tuple[int, ...] | None) -> tuple[int, ...]:
        limit = self._limits.max_frames
        self._directories = page_directories(self.data, limit + 1 if selection is None else selection[-1])
        found = len(self._directories)
        if selection is None:
            if found > limit:
                raise ImageError(ImageReason.TOO_MANY_PAGES, facts={"limit": limit})
            return tuple(range(1, found + 1))
        if selection[-1] > found:
            raise ImageError(ImageReason.NO_SUCH_PAGE, facts={"pages": found})
        return selection

    @contextlib.contextmanager
    def opened(self, page: int, *, is_read: bool = False) -> Iterator[Image.Image]:
        """The file, opened: a TIFF at a page, others at their first frame, a PNG unpacked if its pixels are read."""
        name = _PILLOW_NAMES.get(self.file_format, self.file_format.upper())
        with _pillow_limit(self._limits):
            try:
                if self.file_format is FileFormat.TIFF:
                    if page > len(self._directories):
                        self._directories = page_directories(self.data, page)
                    with opened_page(self.data, self._directories[page - 1]) as image:
                        yield image
                else:
                    data = unpacked(self.data) if is_read and self.file_format is FileFormat.PNG else self.data
                    with Image.open(io.BytesIO(data), formats=(name,)) as image:
                        yield image
            except Image.DecompressionBombError as error:
                raise self._limits.too_many_pixels() from error
            except UnidentifiedImageError as error:
                raise ImageError(ImageReason.DAMAGED, "the header does not match its first bytes") from error
            except OSError as error:
                if str(error).startswith("Unsupported"):
                    # Pillow's words for kinds of BMP that it does not know.
                    raise ImageError(ImageReason.UNSUPPORTED_PIXELS, str(error)) from error
                raise

    @staticmethod
    def _num_frames(image: Image.Image) -> int:
        return 1 if image.format in _ONE_PICTURE else int(getattr(image, "n_frames", 1))

    @staticmethod
    def _seen(image: Image.Image, *, may_be_grey: bool) -> Image.Image:
        try:
            return as_seen(image, may_be_grey=may_be_grey)
        except OSError as error:
            if codec_is_missing(image):
                raise ImageError(ImageReason.UNSUPPORTED_PIXELS, "libtiff lacks its compression") from error
            raise


def _stretched(size: tuple[int, int], stretch: tuple[float, float]) -> tuple[int, int]:
    return round(size[0] * stretch[0]), round(size[1] * stretch[1])


@contextlib.contextmanager
def _pillow_limit(limits: ImageLimits) -> Iterator[None]:
    """Pillow's own limit raises at twice its value, for frames that are larger than the header said."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = limits.max_pixels // 2
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _register_heic() -> None:
    if not reads_heic():
        raise unsupported(HEIC)
    import pi_heif

    pi_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
