"""Chats and documents as clients of OpenAI's and Mistral's APIs send them."""

from __future__ import annotations

import base64
from typing import Any


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def file_part(data: bytes, kind: str = "application/pdf") -> dict[str, Any]:
    return {"type": "file", "file": {"filename": "document.pdf", "file_data": data_url(data, kind)}}


def chat(*parts: dict[str, Any], model: str = "fake", **more: Any) -> dict[str, Any]:
    """A request with one message of a user."""
    return {"model": model, "messages": [{"role": "user", "content": list(parts)}], **more}
