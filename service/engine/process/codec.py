"""Messages between the service and the process that owns the engine, as bytes.

A frame is a big-endian length, a JSON header of that many bytes, and raw pixels. Nothing is ever unpickled. Owns the
encoding of both directions; knows neither processes nor queues. Free of torch.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from service.engine.protocol import (
    EngineInfo,
    EngineState,
    EngineStats,
    SamplingParams,
    SequenceDelta,
    SequenceEvent,
    SequenceFailure,
    SequenceRequest,
    SequenceResult,
    SequenceTimings,
)
from shared.contract.answer import FinishReason
from shared.deepseek_ocr.forms import PageImage, PageViews
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, Tiling, ViewPlan

_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Submit:
    """Queue a sequence."""

    request: SequenceRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    """Forget a sequence."""

    sequence_id: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask for a `Report`, to see that the engine's loop turns."""


@dataclass(frozen=True, slots=True)
class LoadAdapter:
    """Make an adapter resident; answered by an `AdapterReply` of the same call."""

    call: int
    model_id: str
    folder: str


@dataclass(frozen=True, slots=True)
class UnloadAdapter:
    """Take an adapter out of service; answered when its slot is free."""

    call: int
    model_id: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End the loop."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine is loaded and warm."""

    info: EngineInfo


@dataclass(frozen=True, slots=True)
class Broken:
    """The engine could not be made, or its loop ended with an exception; the last frame of its process."""

    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """Events of the last steps, and the engine's state."""

    events: tuple[SequenceEvent, ...]
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class AdapterReply:
    """How a command about an adapter ended."""

    call: int
    reason: str = ""
    """Why it could not be done, as `AdapterError` has it; empty where it was."""
    detail: str = ""
    read_s: float = 0.0
    place_s: float = 0.0


Command = Submit | Cancel | LoadAdapter | UnloadAdapter | Ping | Stop
Message = Ready | Broken | Report | AdapterReply

_SIMPLE_COMMANDS: dict[str, type[Cancel | LoadAdapter | UnloadAdapter | Ping | Stop]] = {
    kind.__name__: kind for kind in (Cancel, LoadAdapter, UnloadAdapter, Ping, Stop)
}

_EVENTS: dict[str, type[SequenceDelta | SequenceResult | SequenceFailure]] = {
    kind.__name__: kind for kind in (SequenceDelta, SequenceResult, SequenceFailure)
}


def encode_command(command: Command) -> list[bytes | memoryview]:
    """Frame a command, in parts that are to lie end to end; its pixels stay where they are."""
    kind = type(command).__name__
    if isinstance(command, Submit):
        request = command.request
        header = {
            "kind": kind,
            "sequence_id": request.sequence_id,
            "plan": asdict(request.page.plan),
            "prompt": request.prompt,
            "params": asdict(request.params),
            "model_id": request.model_id,
            "is_canary": request.is_canary,
            "shapes": [array.shape for array in request.page.arrays],
        }
        pixels = [np.ascontiguousarray(array).reshape(-1).data for array in request.page.arrays]
        return [_frame(header), *pixels]
    return [_frame({"kind": kind, **asdict(command)})]


def decode_command(frame: bytes | memoryview) -> Command:
    """Read a command; its pixels are views of the frame."""
    header, pixels = _split(frame)
    kind = header.pop("kind")
    if kind == "Submit":
        return Submit(_request(header, pixels))
    return _SIMPLE_COMMANDS[kind](**header)


def encode_message(message: Message) -> bytes:
    """Frame a message."""
    kind = type(message).__name__
    if isinstance(message, Report):
        events = [_event_header(event) for event in message.events]
        return _frame({"kind": kind, "events": events, "stats": asdict(message.stats)})
    return _frame({"kind": kind, **asdict(message)})


def _event_header(event: SequenceEvent) -> dict[str, Any]:
    if isinstance(event, SequenceDelta):
        # By hand, as there are hundreds of these between two tokens: `asdict` takes 17 us for one.
        return {"kind": "SequenceDelta", "sequence_id": event.sequence_id, "text": event.text}
    return {"kind": type(event).__name__, **asdict(event)}


def decode_message(frame: bytes) -> Message:
    """Read a message."""
    header, _ = _split(frame)
    kind = header.pop("kind")
    if kind == "Ready":
        return Ready(_info(header["info"]))
    if kind == "Broken":
        return Broken(header["detail"])
    if kind == "AdapterReply":
        return AdapterReply(**header)
    return Report(tuple(map(_event, header["events"])), _stats(header["stats"]))


def _frame(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    return _LENGTH.pack(len(text)) + text


def _split(frame: bytes | memoryview) -> tuple[dict[str, Any], memoryview]:
    body = memoryview(frame)
    (length,) = _LENGTH.unpack_from(body)
    start = _LENGTH.size
    return json.loads(bytes(body[start : start + length])), body[start + length :]


def _request(header: dict[str, Any], pixels: memoryview) -> SequenceRequest:
    left = np.frombuffer(pixels, np.uint8)
    arrays = []
    for shape in header.pop("shapes"):
        size = math.prod(shape)
        arrays.append(left[:size].reshape(shape))
        left = left[size:]
    numbers = header.pop("plan")
    plan = ViewPlan(**{**numbers, "mode": Mode(numbers["mode"])})
    # An image is one array, views are two.
    page = PageImage(plan, *arrays) if len(arrays) == 1 else PageViews(plan, *arrays)
    return SequenceRequest(page=page, params=SamplingParams(**header.pop("params")), **header)


def _event(header: dict[str, Any]) -> SequenceEvent:
    kind = _EVENTS[header.pop("kind")]
    if kind is SequenceResult:
        header["finish_reason"] = FinishReason(header["finish_reason"])
        header["timings"] = SequenceTimings(**header["timings"])
    return kind(**header)


def _info(header: dict[str, Any]) -> EngineInfo:
    geometry = header["geometry"]
    typed = {
        "squash": tuple(map(Mode, geometry["squash"])),
        "modes": tuple(map(Mode, geometry["modes"])),
        "default_mode": Mode(geometry["default_mode"]),
        "tiling": Tiling(geometry["tiling"]),
    }
    return EngineInfo(**{**header, "geometry": GeometryConfig(**{**geometry, **typed})})


def _stats(header: dict[str, Any]) -> EngineStats:
    return EngineStats(**{**header, "state": EngineState(header["state"]), "batch_sizes": tuple(header["batch_sizes"])})
