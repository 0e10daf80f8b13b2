r"""What the model is asked: the public prompts of DeepSeek-OCR, as text after the image.

Also tells a prompt's trusted words from a user's own, so that the tokenizer can keep special tokens out of reach of
uploaded text. Wording and spacing: the README and `config.py` of deepseek-ai/DeepSeek-OCR. Some public examples end
in a space, which the public code strips before it tokenises, so none is sent here.
"""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A stretch of a prompt; special tokens count only where `trusted`."""

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


def prompt_for(task: Task, query: str | None = None) -> str:
    """The prompt of a task.

    Args:
        task: What to do with the page.
        query: What to look for; needed by `locate`, refused by the others.

    Returns:
        Text that follows the image.

    Raises:
        ValueError: `query` is missing, blank, or of no use to the task.
    """
    if task is not Task.LOCATE:
        if query is not None:
            raise ValueError(f"task {task!s} takes no query")
        return _FIXED[task]
    if query is None or not query.strip():
        raise ValueError("task locate needs a query")
    return f"{_LOCATE_BEFORE}{query.strip()}{_LOCATE_AFTER}"


def split_prompt(prompt: str) -> list[PromptPart]:
    """Tell the words of the public prompts from everything else.

    Args:
        prompt: Any prompt, from `prompt_for` or of a user's own making.

    Returns:
        Parts that join to `prompt`. Only a whole public prompt, or the frame around the query of `locate`, is trusted.
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
