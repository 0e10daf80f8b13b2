"""The canary page: every adapter must read it to the end before it serves requests.

It checks that the adapter runs on this engine and device, whatever the text; quality is the evaluation's question.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from collections.abc import AsyncGenerator
from typing import cast

import numpy as np
from PIL import Image, ImageDraw

from service.engine.protocol import (
    EngineHandle,
    SamplingParams,
    SequenceEvent,
    SequenceFailure,
    SequenceRequest,
    SequenceResult,
)
from service.errors import EngineLostError
from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.forms import PageImage
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, plan_views

CANARY_TOKENS = 16
"""Enough to run every layer many times without taking much of a busy engine's time."""
CANARY_WIDTH_PX, CANARY_HEIGHT_PX = 320, 64
_ENGINE_LOST = "engine_lost"


class CanaryError(Exception):
    """The adapter failed on the page; the message says how."""


def canary_page(geometry: GeometryConfig) -> PageImage:
    """One line of print, in the model's cheapest mode."""
    image = Image.new("RGB", (CANARY_WIDTH_PX, CANARY_HEIGHT_PX), "white")
    ImageDraw.Draw(image).text((16, 24), "Canary 0123456789, the page before all pages.", fill="black")
    mode = next((mode for mode in (Mode.TINY, Mode.SMALL) if mode in geometry.modes), geometry.default_mode)
    plan = plan_views(CANARY_WIDTH_PX, CANARY_HEIGHT_PX, mode, geometry)
    return PageImage(plan, np.asarray(image))


async def read_canary(engine: EngineHandle, model_id: str, *, timeout_s: float) -> None:
    """Read the page with a loaded adapter.

    Args:
        engine: The engine that has loaded it.
        model_id: `name@version`.
        timeout_s: Includes waiting for a place in the batch, where the canary goes ahead of other pages.

    Raises:
        CanaryError: The engine failed on the page, or its confidence is not a number.
        EngineLostError: The engine was lost, because of this adapter or not.
        TimeoutError: The engine was too busy.
    """
    request = SequenceRequest(
        f"canary-{uuid.uuid4().hex}",
        canary_page(engine.info.geometry),
        prompt_for(Task.FREE, prompts=engine.info.prompts),
        SamplingParams(CANARY_TOKENS),
        model_id,
        is_canary=True,
        is_streamed=False,
    )
    events = cast("AsyncGenerator[SequenceEvent, None]", engine.submit(request))
    async with asyncio.timeout(timeout_s), contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, SequenceFailure):
                if event.code == _ENGINE_LOST:
                    raise EngineLostError(event.detail)
                raise CanaryError(f"{event.code}: {event.detail}")
            if isinstance(event, SequenceResult):
                if not math.isfinite(event.confidence):
                    raise CanaryError(f"its confidence is {event.confidence}")
                return
    raise EngineLostError("the engine's events ended without a result")
