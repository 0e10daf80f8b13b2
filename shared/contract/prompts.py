r"""The public prompts of DeepSeek-OCR and Unlimited-OCR, as text after the image.

Also separates a prompt's trusted words from a user's own, so that the tokenizer never makes special tokens from a
user's text. Wording and spacing: the README and `config.py` of deepseek-ai/DeepSeek-OCR. Some public examples end
in a space, which the public code strips before it tokenises, so none is sent here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Task(StrEnum):
    """What to do with a page."""

    FREE = "free"
    MARKDOWN = "markdown"
    OCR = "ocr"
    FIGURE = "figure"
    DESCRIBE = "describe"
    LOCATE = "locate"


class PromptSet(StrEnum):
    """The prompts that a model was trained with."""

    DEEPSEEK = "deepseek"
    UNLIMITED = "unlimited"
    """Unlimited-OCR reads whole pages as Markdown with boxes, and knows nothing else."""


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A part of a prompt; special tokens are recognised only in trusted parts."""

    text: str
    trusted: bool


_LOCATE_BEFORE = "\nLocate <|ref|>"
_LOCATE_AFTER = "<|/ref|> in the image."
_FIXED = {
    Task.FREE: "\nFree OCR.",
    Task.MARKDOWN: "\n<|grounding|>Convert the document to markdown.",
    Task.OCR: "\n<|grounding|>OCR this image.",
    Task.FIGURE: "\nParse the figure.",
    Task.DESCRIBE: "\nDescribe this image in detail.",
}


_PARSE, _PARSE_TOGETHER = "document parsing.", "Multi page parsing."
"""Unlimited-OCR's prompts for one page, and for several: README of baidu/Unlimited-OCR."""
_PARSING_TASKS = (Task.FREE, Task.MARKDOWN, Task.OCR)
PAGE_MARK = "<PAGE>"
"""What Unlimited-OCR writes before the text of each of several pages."""


def tasks_of(prompts: PromptSet) -> tuple[Task, ...]:
    """The tasks that a model was trained for."""
    return _PARSING_TASKS if prompts is PromptSet.UNLIMITED else tuple(Task)


def prompt_for(
    task: Task, query: str | None = None, prompts: PromptSet = PromptSet.DEEPSEEK, *, is_together: bool = False
) -> str:
    """The prompt of a task.

    Args:
        task: One of `tasks_of(prompts)`.
        query: Text to look for; required by `locate`, not accepted by the others.
        prompts: The model's.
        is_together: Whether the prompt is of several pages.

    Returns:
        The text that follows the image or images.

    Raises:
        ValueError: `query` is missing, blank, or not accepted by the task; or the model has no such prompt.
    """
    if task not in tasks_of(prompts) or (is_together and prompts is not PromptSet.UNLIMITED):
        raise ValueError(f"the model was not trained for the task {task!s}{' of several pages' * is_together}")
    if prompts is PromptSet.UNLIMITED:
        if query is not None:
            raise ValueError(f"task {task!s} takes no query")
        return _PARSE_TOGETHER if is_together else _PARSE
    if task is not Task.LOCATE:
        if query is not None:
            raise ValueError(f"task {task!s} takes no query")
        return _FIXED[task]
    if query is None or not query.strip():
        raise ValueError("task locate needs a query")
    return f"{_LOCATE_BEFORE}{query.strip()}{_LOCATE_AFTER}"


MAX_QUERY_CHARS = 1000


def _plain(text: str) -> str:
    """A prompt without markers, and without spacing or signs at its ends."""
    return " ".join(re.sub(r"<image>|<\|/?(?:grounding|ref)\|>", " ", text).split()).strip(" .:!")


_KNOWN = (
    {_plain(prompt).casefold(): task for task, prompt in _FIXED.items()}
    | {str(task): task for task in _FIXED}
    | {_plain(_PARSE).casefold(): Task.MARKDOWN}
)
_LOCATE = re.compile(r"locate (.+) in the image", re.IGNORECASE)


def recognise(text: str) -> tuple[Task, str | None] | None:
    """The task that a text asks for: a public prompt, with or without its markers, or a task's name.

    Args:
        text: What a client of a chat API wrote.

    Returns:
        The task, and with `locate` the query, as `prompt_for` takes them; None for any other text.
    """
    if len(text) > 2 * MAX_QUERY_CHARS:
        return None
    plain = _plain(text)
    task = _KNOWN.get(plain.casefold())
    if task is not None:
        return task, None
    found = _LOCATE.fullmatch(plain)
    return (Task.LOCATE, found[1]) if found and len(found[1]) <= MAX_QUERY_CHARS else None


def split_prompt(prompt: str) -> list[PromptPart]:
    """Separate the words of the public prompts from all other text.

    Args:
        prompt: From `prompt_for`, or written by a user.

    Returns:
        Parts that join to `prompt`. A complete public prompt is trusted, and so is the text around
        the query of `locate`; nothing else is.
    """
    if prompt in _FIXED.values():
        return [PromptPart(prompt, trusted=True)]
    framed = prompt.startswith(_LOCATE_BEFORE) and prompt.endswith(_LOCATE_AFTER)
    if not framed or len(prompt) < len(_LOCATE_BEFORE) + len(_LOCATE_AFTER):
        return [PromptPart(prompt, trusted=False)]
    query = prompt[len(_LOCATE_BEFORE) : -len(_LOCATE_AFTER)]
    return [
        PromptPart(_LOCATE_BEFORE, trusted=True),
        PromptPart(query, trusted=False),
        PromptPart(_LOCATE_AFTER, trusted=True),
    ]
