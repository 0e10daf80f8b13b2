"""The clean text of a document while its pages are still being read: in page order, and never taken back."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict

from service.ocr.reader import PAGE_BREAK, PageResult, labels_are_text
from shared.contract.prompts import PromptSet, Task
from shared.deepseek_ocr.grounding import MARKER, OPEN_TAG, parse_grounded

_LONGEST_MARKER = len("<|/grounding|>")
_BEGUN_MARKER = re.compile(r"<(?:\|/?[a-z]{0,9}\|?)?\Z")


class LiveText:
    """Takes deltas and pages as the reader reports them, and gives the text that can be shown.

    All that it gives joins to the document's text, except that text of a page which then fails or turns out to be
    unreadable stays. A page waits for the pages before it. Text with boxes is shown tag by tag, since only a complete
    tag can be told from text.

    Args:
        task: How the pages are read.
        selection: Their numbers in order; None if they are counted from 1.
        prompts: The model's.
    """

    def __init__(
        self, task: Task, selection: tuple[int, ...] | None = None, prompts: PromptSet = PromptSet.DEEPSEEK
    ) -> None:
        self._labels_are_text = labels_are_text(task, prompts)
        self._raw: defaultdict[int, str] = defaultdict(str)
        self._ended: dict[int, PageResult] = {}
        self._order = itertools.count(1) if selection is None else iter((*selection, 0))
        self._has_text = False
        self._next_page()

    def _next_page(self) -> None:
        self._page = next(self._order)
        self._shown = ""
        self._has_begun = False
        self._num_checked = 0
        """Characters of the page's raw text that were searched for markers, so that a delta costs its own length."""
        self._has_markers = False
        self._tag_at = -1
        """Where the last tag begins."""

    def delta(self, page: int, text: str) -> str:
        """Take text that a step added to a page; gives what can be shown now."""
        self._raw[page] += text
        return self._joined(self._settled()) if page == self._page else ""

    def ended(self, page: PageResult) -> str:
        """Take a page that has ended; gives what can be shown now."""
        self._ended[page.page] = page
        shown = ""
        while (now := self._ended.pop(self._page, None)) is not None:
            shown += self._joined(_rest(now.text, self._shown))
            self._raw.pop(self._page, None)
            self._next_page()
        if self._page in self._raw:
            shown += self._joined(self._settled())
        return shown

    def _joined(self, text: str) -> str:
        """A piece of the page's text, after what separates the page from the one before."""
        if not text:
            return ""
        separates = self._has_text and not self._has_begun
        self._has_begun = self._has_text = True
        return PAGE_BREAK + text if separates else text

    def _settled(self) -> str:
        """What is new in the part of the page's text that will not change any more."""
        raw = self._raw[self._page]
        start, self._num_checked = max(self._num_checked - _LONGEST_MARKER, 0), len(raw)
        if not self._has_markers and MARKER.search(raw, start) is None:
            begun = _BEGUN_MARKER.search(raw, max(len(raw) - _LONGEST_MARKER, 0))
            new = raw[len(self._shown) : begun.start() if begun else None]
            if not self._shown and not new.strip():
                # A page of spacing alone is a blank one, without any text.
                return ""
            self._shown += new
            return new
        self._has_markers = True
        tag_at = max((found.start() for found in OPEN_TAG.finditer(raw, start)), default=-1)
        if tag_at <= self._tag_at:
            return ""
        # What comes before a tag ends with it.
        self._tag_at = tag_at
        text = parse_grounded(raw[:tag_at], 1, 1, labels_are_text=self._labels_are_text).text.rstrip()
        if not text.startswith(self._shown):
            return ""
        new, self._shown = text[len(self._shown) :], text
        return new


def _rest(text: str, shown: str) -> str:
    """What of a page's text has not been shown.

    The text loses spacing if the page turns out to have tags after text without any was shown.
    """
    if text.startswith(shown):
        return text[len(shown) :]
    num_shown = len("".join(shown.split()))
    signs = [place for place, sign in enumerate(text) if not sign.isspace()]
    if num_shown <= len(signs) and "".join(text.split()).startswith("".join(shown.split())):
        return text[signs[num_shown - 1] + 1 :] if num_shown else text
    same = (index for index, (one, other) in enumerate(zip(text, shown, strict=False)) if one != other)
    return text[next(same, min(len(text), len(shown))) :]
