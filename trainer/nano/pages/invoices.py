"""Invoices, drawn in six languages: heads of labels and values, positions, sums, banks at the foot."""

from __future__ import annotations

from dataclasses import replace

from trainer.nano.corpus import synthetic_text
from trainer.nano.corpus.paper_words import INVOICE_SHARES, INVOICES, InvoiceWords
from trainer.nano.pages.blocks import Block, FixedLines
from trainer.nano.pages.grid import Grid, set_grid
from trainer.nano.pages.layout import Column
from trainer.nano.pages.mosaic import BandedPage, clouds
from trainer.nano.pages.papers import A4, LETTER, PaperRenderer
from trainer.nano.pages.render import RenderedPage, Tier
from trainer.nano.pages.rows import Cell


class InvoiceRenderer(PaperRenderer):
    """Renders invoices."""

    def render_invoice(self) -> RenderedPage:
        """Render an invoice; text and errors as of `render_mosaic`."""
        return self._render(self._invoice, (A4, A4, A4, (1000, 1414), (1654, 2339), LETTER), Tier.PAGE, (14, 24))

    def _language(self) -> str:
        known = [name for name in INVOICES if name in self._corpus.languages]
        return self._rng.choices(known, [INVOICE_SHARES[name] for name in known])[0]

    def _money(self, words: InvoiceWords, most: float = 4.5) -> str:
        text = f"{10 ** self._rng.uniform(0, most):,.2f}"
        return text.translate({ord(","): words.thousands[0], ord("."): words.thousands[1]})

    def _value(self, words: InvoiceWords) -> str:
        rng = self._rng
        maker = rng.choice((synthetic_text.date, synthetic_text.iban, synthetic_text.person, synthetic_text.phone))
        number = str(rng.randrange(10 ** rng.randint(1, 9)))
        return rng.choice(
            (maker(rng), number, f"{rng.choice('ABKLRV')}{rng.choice(('', '-'))}{number}", self._money(words))
        )

    def _description(self, language: str) -> str:
        rng = self._rng
        words = [
            word if rng.random() < 0.5 else word.capitalize()
            for word in self._corpus.words(rng, rng.randint(1, 6), language)
        ]
        if rng.random() < 0.4:
            unit = rng.choice(("x##", " x ##", " mm", " ml", " kg", " W", "/##", ""))
            size = synthetic_text.filled(rng, f"{rng.randint(1, 200)}{unit}")
            words.insert(rng.randrange(len(words) + 1), size)
        return " ".join(words)

    def _invoice(self, page: BandedPage) -> None:
        rng = self._rng
        language = self._language()
        words = INVOICES[language]
        foot = self._invoice_foot(page, words) if rng.random() < 0.65 else ""
        self._invoice_head(page, words)
        rows = self._rows(page, page.style)
        if rng.random() < 0.8:
            title = f"{rng.choice(words.titles)} {rng.choice(('', self._value(words)))}"
            rows.add(
                Cell(title, page.left, page.width, rng.choice(("left", "left", "center", "right")), page.style.heading)
            )
            rows.add()
        for text in rng.sample(words.letter, rng.randint(0, 2)):
            rows.prose(text, page.left, page.width)
        rows.close()
        page.y += self._gap(page) // 2
        self._positions(page, words, language)
        self._totals(page, words)
        rows = self._rows(page, rng.choice((page.style, page.small)))
        for text in rng.sample(words.letter, min(rng.randint(0, 5), len(words.letter))):
            rows.prose(text, page.left, page.width)
            if rng.random() < 0.3:
                rows.add()
        if rng.random() < 0.3:
            rows.prose(self._corpus.paragraph(rng, language), page.left, page.width)
        rows.close()
        if rng.random() < 0.12:
            self._stamp(page)
        if foot:
            page.texts.append(foot)

    def _invoice_head(self, page: BandedPage, words: InvoiceWords) -> None:
        rng, size = self._rng, page.style.glyphs.size_px
        if rng.random() < 0.35:
            high, wide = rng.randint(2 * size, 5 * size), rng.randint(4 * size, 12 * size)
            page.sheet.place(clouds(rng, wide, high), page.left + rng.choice((0, max(page.width - wide, 0))), page.y)
            page.y += high + size // 2
        rows = self._rows(page, page.small)
        if rng.random() < 0.5:
            sender = synthetic_text.address(rng, self._corpus)[:4]
            rows.add(Cell(rng.choice((" · ", ", ", " - ", " • ", " | ")).join(sender), page.left, page.width))
            if rng.random() < 0.5:
                page.sheet.rule(page.left, page.y, page.left + page.width // 2, page.y + 1)
        rows.close()
        page.y += size // 2
        count = rng.choice((2, 2, 2, 3))
        gutter = size * 2
        width = (page.width - gutter * (count - 1)) // count
        columns = [page.column(page.left + i * (width + gutter), width) for i in range(count)]
        for i, column in enumerate(columns):
            if i == 0 or rng.random() < 0.3:
                block: Block = FixedLines(tuple(synthetic_text.address(rng, self._corpus)))
                self._set(column, block, page.style, page)
            else:
                self._pairs(page, column, words)
        page.close(columns, self._gap(page))

    def _pairs(self, page: BandedPage, column: Column, words: InvoiceWords) -> None:
        """Labels and values in two aligned columns, or after one another."""
        rng, style = self._rng, self._plain(page)
        mark = rng.choice((":", ":", "", " :"))
        labels = rng.sample(words.labels, min(rng.randint(2, 8), len(words.labels)))
        if rng.random() < 0.3:
            lines = tuple(f"{label}{mark} {self._value(words)}" for label in labels)
            self._set(column, FixedLines(lines), style, page)
            return
        inner = BandedPage(
            page.sheet,
            column.x,
            column.width,
            column.y,
            column.bottom,
            column.characters,
            [],
            style,
            style,
            page.drawable,
        )
        rows = self._rows(inner, style)
        middle = round(column.width * rng.uniform(0.4, 0.6))
        align = rng.choice(("left", "left", "right"))
        for label in labels:
            bold = style.heading if rng.random() < 0.2 else None
            rows.add(
                Cell(label + mark, column.x, middle - 8, glyphs=bold),
                Cell(self._value(words), column.x + middle, column.width - middle, align),
            )
        rows.close()
        column.y = inner.y
        column.blocks += [text.split("\n") for text in inner.texts]

    def _positions(self, page: BandedPage, words: InvoiceWords, language: str) -> None:
        rng, style = self._rng, self._plain(page)
        figures = rng.sample(words.figures, min(rng.randint(2, 6), len(words.figures)))
        head = [rng.choice(words.number)] * (rng.random() < 0.7) + [rng.choice(words.article)] * (rng.random() < 0.5)
        flexible = len(head)
        head += [rng.choice(words.item), *figures]
        money = rng.choice(("", "", "", " €", " EUR"))
        kinds = [rng.choice(("count", "unit", "money", "money", "percent")) for _ in figures[:-1]] + ["money"]
        article = rng.choice(("######", "##-####", "@@####", "#############", "@-###.##"))
        body = []
        for i in range(rng.randint(1, 16)):
            row = [str((i + 1) * rng.choice((1, 1, 1, 10)))] if head[0] in words.number else []
            row += [synthetic_text.filled(rng, article)] * (flexible > len(row))
            row.append(self._description(language))
            for kind in kinds:
                row.append(
                    f"{rng.randint(1, 200)}{rng.choice(('', '', ',00'))}" if kind == "count"
                    else rng.choice(words.units) if kind == "unit"
                    else f"{rng.choice((7, 19, 20, 5, 0))}{rng.choice((' %', '%', ',00 %', ''))}" if kind == "percent"
                    else self._money(words, 3.5) + money
                )  # fmt: skip
            body.append(row)
        aligns = ["left"] * (flexible + 1) + ["left" if kind == "unit" else "right" for kind in kinds]
        set_grid(page, Grid([head], body, aligns, flexible), style, rng)
        page.y += self._gap(page) // 2

    def _totals(self, page: BandedPage, words: InvoiceWords) -> None:
        rng = self._rng
        rows = self._rows(page, page.style)
        start = page.left + round(page.width * rng.uniform(0.3, 0.65))
        width = page.left + page.width - start
        unit = rng.choice(("", "", " €", " EUR"))
        labels = rng.sample(words.totals, min(rng.randint(1, 5), len(words.totals)))
        for i, label in enumerate(labels):
            last = i == len(labels) - 1
            if last and rng.random() < 0.4:
                page.sheet.rule(start, page.y, start + width, page.y + 2)
                page.y += 5
            bold = page.style.heading if last and rng.random() < 0.7 else None
            room = round(width * 0.6)
            rows.add(
                Cell(label + rng.choice((":", "")), start, room - 8, glyphs=bold),
                Cell(self._money(words) + unit, start + room, width - room, "right", bold),
            )
        rows.close()
        page.y += self._gap(page) // 2

    def _invoice_foot(self, page: BandedPage, words: InvoiceWords) -> str:
        """Addresses, banks and registers in columns at the lower edge, read last."""
        rng, small = self._rng, page.small
        lines = rng.randint(2, 5)
        high = round(small.glyphs.size_px * 1.25 * lines) + small.glyphs.size_px
        top = page.bottom - high
        page.bottom = top - small.glyphs.size_px
        if rng.random() < 0.6:
            page.sheet.rule(
                page.left, top - small.glyphs.size_px // 2, page.left + page.width, top - small.glyphs.size_px // 2 + 1
            )
        count = rng.choice((2, 3, 3, 4))
        width = page.width // count
        texts = []
        for i in range(count):
            column = Column(page.sheet, page.left + i * width, width - 10, top, top + high, lines=lines)
            content = []
            for _ in range(lines):
                value = rng.choice((self._value(words), self._words(2).title(), synthetic_text.iban(rng)))
                content.append(rng.choice((f"{rng.choice(words.foot)} {value}", value)))
            self._set(column, FixedLines(tuple(content)), replace(small, leading=1.2), page)
            texts.append(column.text())
        return "\n\n".join(text for text in texts if text)
