"""Files of every kind through a real image process: each gets the right answer, and none takes the process down."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator

import pytest

from service.errors import DeepSynthError
from service.intake.document import Document
from service.intake.limits import DecodeTask, IntakeLimits
from service.intake.pages import DecodedPage
from service.intake.pool import ImagePool
from shared.deepseek_ocr.geometry import GeometryConfig, Mode
from tests.support.corpus import BLANK, READ, REFUSED

MIB = 1024 * 1024
LIMITS = IntakeLimits(max_pixels=40_000_000)
TASK = DecodeTask(1, Mode.SMALL, GeometryConfig())
DAMAGE_CODES = {
    "decode_out_of_memory",
    "empty_file",
    "extreme_aspect_ratio",
    "page_out_of_range",
    "pdf_encrypted",
    "too_many_pages",
    "too_many_pixels",
    "undecodable_file",
    "unsupported_format",
    "unsupported_pixel_type",
}
"""What a damaged file may be called; a crash or a timeout of its process is neither."""


@contextlib.asynccontextmanager
async def running_pool() -> AsyncIterator[tuple[ImagePool, list[str]]]:
    restarts: list[str] = []
    pool = ImagePool(
        workers=1, memory_bytes=1024 * MIB, timeout_s=30.0, max_file_bytes=20 * MIB, on_restart=restarts.append
    )
    try:
        await pool.start()
        yield pool, restarts
    finally:
        await pool.stop()


async def outcome(pool: ImagePool, data: bytes) -> DecodedPage | str:
    """The first page, or the code of why there is none."""
    document = Document(data, LIMITS)
    try:
        await pool.open(document)
        return await pool.decode(document, TASK)
    except DeepSynthError as error:
        return error.code
    finally:
        pool.close(document)


async def test_every_kind_gets_its_answer_from_one_process() -> None:
    wrong: dict[str, str] = {}
    async with running_pool() as (pool, restarts):
        for name, make in READ.items():
            page = await outcome(pool, make())
            if isinstance(page, str) or page.ink.is_blank or page.is_damaged:
                wrong[name] = (
                    page if isinstance(page, str) else f"blank: {page.ink.is_blank}, damaged: {page.is_damaged}"
                )
        for name, (make, code) in REFUSED.items():
            page = await outcome(pool, make())
            if page != code:
                wrong[name] = page if isinstance(page, str) else "read"
        for name, make in BLANK.items():
            page = await outcome(pool, make())
            if isinstance(page, str) or not page.ink.is_blank:
                wrong[name] = page if isinstance(page, str) else "not blank"
        assert restarts == []
    assert wrong == {}


@pytest.mark.parametrize("seed", range(4))
async def test_damage_anywhere_is_an_error_of_the_file_and_costs_no_process(seed: int) -> None:
    draw = random.Random(seed)
    wrong: dict[str, str] = {}
    async with running_pool() as (pool, restarts):
        for name, make in list(READ.items())[seed::4]:
            data = make()
            for number in range(4):
                damaged = bytearray(data if number % 2 else data[: draw.randrange(1, len(data))])
                for _ in range(draw.randrange(1, 12) if number % 2 else 0):
                    damaged[draw.randrange(len(damaged))] = draw.randrange(256)
                page = await outcome(pool, bytes(damaged))
                if isinstance(page, str) and page not in DAMAGE_CODES:
                    wrong[f"{name}, {number}"] = page
        assert restarts == []
    assert wrong == {}
