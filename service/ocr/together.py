"""From the one answer to several pages that were read together, to the text of each.

The model writes a mark before each page's text. Knows neither pages nor the engine.
"""

from __future__ import annotations

from shared.contract.prompts import PAGE_MARK


class PageSplitter:
    """Cuts a growing answer at its marks; a mark that has only begun is held back.

    The first page has everything up to the second mark, the last one everything after its own. Pages whose mark never
    comes have no text.

    Args:
        num_pages: Pages of the pass.
    """

    def __init__(self, num_pages: int) -> None:
        self._last = num_pages - 1
        self._num_marks = 0
        self._held = ""

    @property
    def page(self) -> int:
        """The page that is being written, from 0."""
        return min(max(self._num_marks - 1, 0), self._last)

    def push(self, text: str) -> list[tuple[int, str]]:
        """Take more of the answer; gives what can be told of it, in order, by page."""
        *whole, rest = (self._held + text).split(PAGE_MARK)
        self._held = _begun_mark(rest)
        found: list[tuple[int, str]] = []
        for piece in whole:
            found.append((self.page, piece))
            self._num_marks += 1
        found.append((self.page, rest.removesuffix(self._held)))
        return [(page, piece) for page, piece in found if piece]

    def finish(self) -> list[tuple[int, str]]:
        """What was held back; no more follows."""
        held, self._held = self._held, ""
        return [(self.page, held)] if held else []


def split_pages(text: str, num_pages: int) -> list[str]:
    """The text of each page, without spacing at its ends.

    Args:
        text: The whole answer.
        num_pages: Pages of the pass.

    Returns:
        As many texts as pages; empty for a page whose mark the answer does not have.
    """
    splitter = PageSplitter(num_pages)
    texts = [""] * num_pages
    for page, piece in (*splitter.push(text), *splitter.finish()):
        texts[page] += piece
    return [each.strip() for each in texts]


def _begun_mark(text: str) -> str:
    """The end of a text that a mark may begin with."""
    return next((PAGE_MARK[:size] for size in range(len(PAGE_MARK) - 1, 0, -1) if text.endswith(PAGE_MARK[:size])), "")
