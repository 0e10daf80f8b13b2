"""Receipts of shops: a narrow roll of capitals, codes, prices and sums, as tills print them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from trainer.nano.corpus import synthetic_text
from trainer.nano.corpus.paper_words import INVOICES, InvoiceWords
from trainer.nano.corpus.till_words import (
    ADDRESS_PARTS,
    CODES,
    COLUMN_HEADS,
    FIRMS,
    LABELS,
    NOTES,
    SUMS,
    TAX_MARKS,
    VALUES,
)
from trainer.nano.fonts.glyphs import Glyphs
from trainer.nano.pages.invoices import InvoiceRenderer
from trainer.nano.pages.mosaic import BandedPage
from trainer.nano.pages.render import RenderedPage, Tier
from trainer.nano.pages.rows import Cell, Rows

SIZES_PX: Final = ((480, 1280), (560, 1600), (640, 1900), (420, 900), (720, 1900))
EM_PX: Final = (13, 28)
LANGUAGE_SHARES: Final = {"en": 0.62, "de": 0.14, "fr": 0.08, "es": 0.06, "it": 0.05, "nl": 0.05}
KIND_SHARES: Final = {"mono": 0.4, "sans": 0.45, "typewriter": 0.05, "serif": 0.1}
CAPITALS_SHARE: Final = 0.6
COLON_COLUMN_SHARE: Final = 0.4
"""Of receipts whose labels have their colons below one another."""


@dataclass(frozen=True, slots=True)
class _Roll:
    """A receipt that is being set."""

    page: BandedPage
    rows: Rows
    words: InvoiceWords
    language: str
    in_capitals: bool
    currency: str
    taxes: Sequence[str]
    sign: str

    def cased(self, text: str) -> str:
        if self.language == "en":  # its words include names with accents, which tills do not print
            text = unicodedata.normalize("NFD", text).encode("ascii", "ignore").decode()
        return text.upper() if self.in_capitals else text

    def add(self, text: str, align: str = "left", indent: int = 0) -> None:
        self.rows.add(Cell(self.cased(text), self.page.left + indent, self.page.width - indent, align))

    def pair(self, label: str, value: str, face: Glyphs | None = None) -> bool:
        # A long name leaves the price its room.
        page, glyphs = self.page, face or self.page.style.glyphs
        room = page.width - glyphs.width(value) - glyphs.size_px // 2
        return self.rows.add(
            Cell(self.cased(label), page.left, room, glyphs=face),
            Cell(value, page.left, page.width, "right", face),
        )

    def cells(self, texts: Sequence[str], shares: Sequence[float]) -> bool:
        """Columns from left to right; each but the first is set to the right."""
        total, x, cells = sum(shares), float(self.page.left), []
        for i, (text, share) in enumerate(zip(texts, shares, strict=True)):
            width = self.page.width * share / total
            if text:
                cells.append(Cell(self.cased(text), round(x), round(width) - 4, "left" if i == 0 else "right"))
            x += width
        return self.rows.add(*cells)

    def rule(self) -> None:
        width = self.page.style.glyphs.width(self.sign) if self.sign else 0
        if width:
            self.rows.add(Cell(self.sign * max(self.page.width // width, 1), self.page.left, self.page.width))
        else:
            self.rows.add()


class ReceiptRenderer(InvoiceRenderer):
    """Renders receipts."""

    def render_receipt(self) -> RenderedPage:
        """Render a receipt of a shop; text and errors as of `render_mosaic`."""
        kind = self._rng.choices([*KIND_SHARES], [*KIND_SHARES.values()])[0]
        return self._render(self._receipt, SIZES_PX, Tier.PAGE, EM_PX, kind)

    def _receipt(self, page: BandedPage) -> None:
        rng = self._rng
        known = {name: share for name, share in LANGUAGE_SHARES.items() if name in self._corpus.languages}
        language = rng.choices([*known], [*known.values()])[0]
        size = page.style.glyphs.size_px
        roll = _Roll(
            page,
            self._rows(page, page.style, round(size * rng.uniform(1.05, 1.5))),
            INVOICES[language],
            language,
            rng.random() < CAPITALS_SHARE,
            rng.choice(("", "", "", "$", "£", "RM", "RM ", "€ ", "CHF ", "S$", "USD ")),
            rng.choice(TAX_MARKS),
            rng.choice(("-", "-", "=", "*", "_", ".", "- ", "", "")),
        )
        self._head(roll)
        roll.rule()
        self._labels(roll)
        roll.rule()
        self._items(roll)
        roll.rule()
        self._sums(roll)
        if roll.taxes[0] and rng.random() < 0.5:
            self._taxes(roll)
        if rng.random() < 0.5:
            roll.rule()
        self._end(roll)
        roll.rows.close()

    def _filled(self, shape: str) -> str:
        return synthetic_text.filled(self._rng, shape)

    def _price(self, roll: _Roll, most: float) -> str:
        """An amount, as one in five is written with the currency."""
        return (roll.currency if self._rng.random() < 0.2 else "") + self._money(roll.words, most)

    def _head(self, roll: _Roll) -> None:
        rng = self._rng
        align = rng.choice(("center", "center", "left"))
        name = " ".join(self._corpus.words(rng, rng.randint(1, 3), roll.language)).title()
        roll.rows.add(
            Cell(
                roll.cased(f"{name} {rng.choice(FIRMS)}".strip()),
                roll.page.left,
                roll.page.width,
                align,
                roll.page.style.heading if rng.random() < 0.4 else None,
            )
        )
        if rng.random() < 0.5:
            roll.add(
                self._filled(rng.choice(("(######-@)", "(#######-@)", "CO. NO. ######-@", "REG NO: ########@"))), align
            )
        if rng.random() < 0.5:
            lines = synthetic_text.address(rng, self._corpus)
        else:
            words = [word.capitalize() for word in self._corpus.words(rng, 6, roll.language)]
            parts = [
                self._filled(rng.choice(ADDRESS_PARTS)).format(*rng.sample(words, 3)) for _ in range(rng.randint(2, 5))
            ]
            lines = [part + rng.choice((",", ",", ", ", "", ".")) for part in parts]
        for line in lines:
            roll.add(line, align)
        for label in rng.sample(("TEL", "FAX", "GST ID", "TAX NO", "VAT REG"), rng.randint(0, 3)):
            value = self._filled(
                rng.choice(("0#-########", "+##-# ### ####", "############", "##-#### ####", "(###) ###-####"))
            )
            roll.add(f"{label}{rng.choice((':', ': ', ' : ', ' ', ':'))}{value}", align)
        if rng.random() < 0.3:
            roll.add(
                rng.choice(("TAX INVOICE", "INVOICE", "CASH RECEIPT", "SIMPLIFIED TAX INVOICE", "RECEIPT")), "center"
            )

    def _labels(self, roll: _Roll) -> None:
        rng = self._rng
        labels = rng.sample(LABELS if roll.language == "en" else roll.words.labels, rng.randint(1, 7))
        in_column = rng.random() < COLON_COLUMN_SHARE
        stop = round(roll.page.width * rng.uniform(0.25, 0.45))
        mark = rng.choice((":", " :", ": ", "", " : "))
        for label in labels:
            value = self._filled(rng.choice(VALUES)) if rng.random() < 0.75 else self._value(roll.words)
            if in_column:
                left, gap = roll.page.left + stop, roll.page.style.glyphs.size_px
                roll.rows.add(
                    Cell(roll.cased(label), roll.page.left, stop - 4),
                    Cell(":", left, gap),
                    Cell(roll.cased(value), left + gap, roll.page.width - stop - gap),
                )
            elif rng.random() < 0.3:
                roll.pair(f"{label}{mark}", value)
            else:
                roll.add(f"{label}{mark} {value}")

    def _items(self, roll: _Roll) -> None:
        rng = self._rng
        kind = rng.choice(("pair", "pair", "code", "columns", "columns", "quantity"))
        code = rng.choice(CODES)
        if kind == "columns" or rng.random() < 0.2:
            heads = rng.choice(COLUMN_HEADS)
            roll.cells(heads, (3, *(1.2,) * (len(heads) - 1)))
            if rng.random() < 0.6:
                roll.rule()
        for _ in range(rng.randint(1, 20)):
            name = self._description(roll.language)
            tax = rng.choice(roll.taxes)
            price = self._price(roll, 2.2)
            count = str(rng.choice((1, 1, 1, 2, 3, rng.randint(2, 60))))
            if kind == "pair":
                fits = roll.pair(name, f"{price} {tax}".strip())
            elif kind == "code":
                roll.add(f"{self._filled(code)} {name if rng.random() < 0.5 else ''}".strip())
                fits = roll.cells((f"{count} {rng.choice('xX@*')} {self._price(roll, 1.8)}", price, tax), (3, 2, 0.8))
            elif kind == "columns":
                roll.add(name if rng.random() < 0.6 else f"{self._filled(code)} {name}")
                fits = roll.cells(
                    (f"{count}.00" if rng.random() < 0.2 else count, self._price(roll, 1.8), price, tax), (2, 2, 2, 1)
                )
            else:
                fits = roll.pair(f"{count}{rng.choice((' ', 'x ', ' X '))}{name}", f"{price}{tax}")
            if not fits:
                return
            if rng.random() < 0.12:
                unit = rng.choice(("kg", "KG", "lb", "L", "pcs", "UNIT"))
                weight = f"{rng.random() * 3:.3f}".replace(".", roll.words.thousands[1])
                roll.add(
                    f"{weight} {unit} {rng.choice('@xX')} {self._price(roll, 1.5)}/{unit}", indent=rng.randrange(40)
                )
            if rng.random() < 0.08:
                roll.pair(
                    rng.choice(("Discount", "DISC 10%", "Promo", "Member price")), f"-{self._money(roll.words, 1.2)}"
                )

    def _sums(self, roll: _Roll) -> None:
        rng = self._rng
        labels = SUMS if roll.language == "en" else (*roll.words.totals, *roll.words.receipt)
        for label in rng.sample(labels, rng.randint(2, 7)):
            mark = rng.choice((":", "", "", " :"))
            unit = rng.choice(("", "", f" ({roll.currency.strip()})" if roll.currency else ""))
            bold = roll.page.style.heading if rng.random() < 0.2 else None
            roll.pair(f"{label}{unit}{mark}", self._price(roll, rng.choice((0.5, 2.5, 3))), bold)

    def _taxes(self, roll: _Roll) -> None:
        """A table of what was taxed how."""
        rng = self._rng
        rate = rng.choice(("6%", "7%", "8%", "19%", "20%", "5.00%", "0%", "10 %"))
        title = rng.choice(("GST Summary", "Tax Summary", "VAT", "GST", "Tax"))
        money = roll.currency.strip()
        heads = [title, f"Amount({money})" if money else "Amount", f"Tax({money})" if money else "Tax"]
        roll.cells(heads, (2, 2, 2))
        for mark in rng.sample([each for each in roll.taxes if each], rng.randint(1, len(set(roll.taxes) - {""}))):
            label = rng.choice(
                (f"{mark} @{rate}", f"{mark} = {rate}", f"{mark} {rate}", f"{mark} @ {rate}", f"({mark} @{rate})")
            )
            roll.cells((label, self._money(roll.words, 2.5), self._money(roll.words, 1.2)), (2, 2, 2))

    def _end(self, roll: _Roll) -> None:
        rng = self._rng
        for _ in range(rng.randint(1, 6)):
            text = rng.choice(
                (
                    rng.choice(NOTES if roll.language == "en" else roll.words.letter),
                    rng.choice(roll.words.receipt),
                    synthetic_text.date(rng),
                    self._filled(rng.choice(VALUES)),
                    rng.choice((synthetic_text.url, synthetic_text.email, synthetic_text.phone))(rng, self._corpus),
                    f"{rng.choice(('***', '**', '==', '>>>', '---'))} {rng.choice(NOTES)}",
                )
            )
            roll.rows.prose(
                roll.cased(text), roll.page.left, roll.page.width, align=rng.choice(("center", "center", "left"))
            )
