"""The kinds of source that a folder can hold; as names, so that `--help` needs no package."""

from __future__ import annotations

from enum import StrEnum


class SourceKind(StrEnum):
    """What a folder can be read as."""

    IMAGES = "images"
    INDEX = "index"
    PARQUET = "parquet"
    WEBDATASET = "webdataset"
    PAGE_XML = "page-xml"
    ALTO = "alto"
    HOCR = "hocr"
    PDF = "pdf"
