"""Pages as chats: `messages` with contents or parts as OpenAI's API has them, or ShareGPT's `conversations`.

A page has one question and one answer, so a row of several turns is refused. Around any other source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from trainer.data.errors import RowCode, RowError
from trainer.data.sources.protocol import (
    IMAGE_COLUMN,
    IMAGES_COLUMN,
    PROMPT_COLUMN,
    SPLIT_COLUMN,
    TEXT_COLUMN,
    WHOLE,
    BrokenRow,
    PageSource,
    Part,
    Row,
)

CHAT_COLUMNS: Final = ("messages", "conversations")
_ROLES: Final = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "model": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip
_PLACEHOLDER: Final = "<image>"


def is_chat(columns: Sequence[str]) -> bool:
    """Whether a source's rows are chats."""
    return TEXT_COLUMN not in columns and any(name in columns for name in CHAT_COLUMNS)


class ChatSource:
    """Rows of a source of chats: `image`, or `images` where the first row has several, `text` and `prompt`.

    Attributes:
        name: of the source.
        columns: of its rows.
        passed_over: as the source has it.
    """

    def __init__(self, source: PageSource) -> None:
        """Wrap a source of chats."""
        self._source = source
        self.name = source.name
        self.passed_over = source.passed_over
        first = next((row for row in source.rows() if isinstance(row, Row) and _is_valid(row.fields)), None)
        self._several = first is not None and len(_read(first.fields)[0]) > 1
        image = IMAGES_COLUMN if self._several else IMAGE_COLUMN
        split = (SPLIT_COLUMN,) if SPLIT_COLUMN in source.columns else ()
        self.columns = (image, TEXT_COLUMN, PROMPT_COLUMN, *split)

    @property
    def num_rows(self) -> int | None:
        """See `PageSource`."""
        return self._source.num_rows

    @property
    def image_root(self) -> Path | None:
        """See `PageSource`."""
        return self._source.image_root

    def rows(self, part: Part = WHOLE, start: int = 0, seed: int | None = None) -> Iterator[Row | BrokenRow]:
        """See `PageSource`."""
        return (self._as_page(row) for row in self._source.rows(part, start, seed))

    def fingerprint(self) -> str:
        """See `PageSource`."""
        return self._source.fingerprint()

    def _as_page(self, row: Row | BrokenRow) -> Row | BrokenRow:
        if isinstance(row, BrokenRow):
            return row
        try:
            images, prompt, answer = _read(row.fields)
        except RowError as error:
            return BrokenRow(row.number, row.name, error.code, error.reason)
        fields: dict[str, Any] = {TEXT_COLUMN: answer, PROMPT_COLUMN: prompt}
        if self._several:
            fields[IMAGES_COLUMN] = images
        else:
            fields[IMAGE_COLUMN] = images[0] if len(images) == 1 else images
        if SPLIT_COLUMN in row.fields:
            fields[SPLIT_COLUMN] = row.fields[SPLIT_COLUMN]
        return replace(row, fields=fields)


def _is_valid(fields: Mapping[str, Any]) -> bool:
    try:
        _read(fields)
    except RowError:
        return False
    return True


def _read(fields: Mapping[str, Any]) -> tuple[list[Any], str, str]:
    """Images, question and answer of a chat."""
    turns = next((fields[name] for name in CHAT_COLUMNS if fields.get(name)), None)
    if not isinstance(turns, list):
        raise RowError(RowCode.CHAT_INVALID, f"it has no list of {' or '.join(CHAT_COLUMNS)}")
    images: list[Any] = []
    said: list[tuple[str, str]] = []
    for turn in turns:
        role, content = _turn(turn)
        text, shown = _content(content)
        images += shown
        if role != "system":
            said.append((role, text))
    roles = [role for role, _ in said]
    if roles != ["user", "assistant"]:
        order = ", ".join(roles) or "none"
        raise RowError(RowCode.CHAT_INVALID, f"its turns are {order}: a page has one question and one answer")
    named = fields.get(IMAGES_COLUMN) or fields.get(IMAGE_COLUMN) or []
    images = [*(named if isinstance(named, list) else [named]), *images]
    if not images:
        raise RowError(RowCode.IMAGE_MISSING, "it has no image, neither in a part nor in column 'images'")
    return images, said[0][1].replace(_PLACEHOLDER, "").strip(), said[1][1]


def _turn(turn: Any) -> tuple[str, Any]:
    if not isinstance(turn, Mapping):
        raise RowError(RowCode.CHAT_INVALID, "a turn is not an object")
    stated = turn.get("role") or turn.get("from")
    role = _ROLES.get(str(stated).lower())
    if role is None:
        raise RowError(RowCode.CHAT_INVALID, f"the role {str(stated)[:40]!r} is not one of {', '.join(_ROLES)}")
    return role, turn.get("content") if turn.get("content") is not None else turn.get("value")


def _content(content: Any) -> tuple[str, list[Any]]:
    """Text and images of a turn."""
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        raise RowError(RowCode.CHAT_INVALID, "a turn has no content")
    texts: list[str] = []
    images: list[Any] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise RowError(RowCode.CHAT_INVALID, "a part of a turn is not an object")
        if isinstance(part.get("text"), str):
            texts.append(part["text"])
            continue
        image = next((part[key] for key in ("image_url", "image", "url", "path") if part.get(key)), None)
        # Data sets of the Hub list images on their own, and only mark their places in the text.
        if image is not None:
            images.append(image)
        elif part.get("type") not in {"image", "image_url", "input_image"}:
            raise RowError(RowCode.CHAT_INVALID, f"a part of type {str(part.get('type'))[:40]!r} is not read")
    return "\n".join(texts), images
