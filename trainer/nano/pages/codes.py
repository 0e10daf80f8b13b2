"""Lines of codes, numbers and random strings, which can only be read, not guessed."""

from __future__ import annotations

import string
from collections.abc import Iterator
from random import Random
from typing import Final

from trainer.nano.corpus.synthetic_text import any_line, confusable_string, filled, iban, phone, random_string
from trainer.nano.pages.blocks import Block, FixedLines
from trainer.nano.pages.render import PageRenderer, RenderedPage, Tier

EM_PX: Final = (14, 40)


class CodeRenderer(PageRenderer):
    """Renders lines of codes."""

    def render_code(self) -> RenderedPage:
        """Render a line.

        Returns:
            The image; its text has ASCII characters alone.

        Raises:
            RuntimeError: no attempt gave a line (fonts are unusable).
        """
        return self.render(Tier.LINE, size_px=EM_PX)

    def _content(self, tier: Tier) -> Iterator[Block]:
        return iter([FixedLines((code_text(self._rng),)) for _ in range(3)])


class StringRenderer(PageRenderer):
    """Renders images of any tier with codes, random strings and other lines that no language helps to read."""

    def _content(self, tier: Tier) -> Iterator[Block]:
        del tier
        while True:
            kind = self._rng.random()
            if kind < 0.25:
                yield FixedLines((code_text(self._rng),))
            elif kind < 0.5:
                yield FixedLines((random_string(self._rng),))
            elif kind < 0.85:
                yield FixedLines((confusable_string(self._rng),))
            else:
                yield FixedLines((any_line(self._rng, self._corpus),))


def code_text(rng: Random) -> str:
    """One to three codes in a row: long numbers, random letters and digits, numbers of accounts and telephones."""
    makers = (
        lambda: filled(rng, "#" * rng.randint(6, 18)),
        lambda: "".join(rng.choices(string.ascii_uppercase + string.digits, k=rng.randint(4, 14))),
        lambda: "".join(rng.choices(string.ascii_letters + string.digits, k=rng.randint(4, 12))),
        lambda: filled(
            rng, rng.choice(("##.##.####", "####-##-##", "##/##/####", "##:##:##", "#.###.###,##", "##,###.##"))
        ),
        lambda: iban(rng),
        lambda: phone(rng),
    )
    return " ".join(rng.choice(makers)() for _ in range(rng.randint(1, 3)))
