"""Dense tables, forms and tables of contents, drawn: figures in many columns, leaders, room to write."""

from __future__ import annotations

from trainer.nano.corpus import synthetic_text
from trainer.nano.corpus.paper_words import FORM_LABELS
from trainer.nano.corpus.words import LABELS, MONTHS
from trainer.nano.pages.grid import Grid, set_grid
from trainer.nano.pages.mosaic import BandedPage
from trainer.nano.pages.papers import A4, LETTER, PaperRenderer
from trainer.nano.pages.render import RenderedPage, Tier
from trainer.nano.pages.rows import Cell, Rows


class TableRenderer(PaperRenderer):
    """Renders dense tables and forms."""

    def render_table(self) -> RenderedPage:
        """Render a dense table, a form or a table of contents; text and errors as of `render_mosaic`."""
        sizes = (A4, A4, LETTER, (1754, 1240), (1000, 1414), (1280, 900), (1654, 2339))
        kind = self._rng.choices((self._tables, self._leaders), (0.7, 0.3))[0]
        return self._render(kind, sizes, Tier.PAGE, (12, 22))

    def _tables(self, page: BandedPage) -> None:
        """Figures of many columns under a title, with notes."""
        rng = self._rng
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            if page.bottom - page.y < 12 * page.small.glyphs.size_px:
                break
            rows = self._rows(page, page.style)
            title = " ".join(self._corpus.passage(rng).text.split()[: rng.randint(3, 14)])
            kind = rng.choice(("Table", "TABLE", "Tabelle", "Tableau", "Exhibit", "Annex"))
            mark = rng.choice((".", ":", " –"))
            rows.prose(f"{kind} {rng.randint(1, 40)}{mark} {title}", page.left, page.width)
            if rng.random() < 0.4:
                unit = rng.choice(
                    (
                        "(in millions of dollars)",
                        "(in thousands)",
                        "in Mio. €",
                        "(percent)",
                        "en milliers",
                        "(1,000 tons)",
                    )
                )
                rows.add(Cell(unit, page.left, page.width, rng.choice(("left", "right", "center"))))
            rows.close()
            page.y += page.small.glyphs.size_px // 3
            self._figures(page)
            rows = self._rows(page, page.small)
            for i in range(rng.randint(0, 3)):
                text = " ".join(self._corpus.passage(rng).text.split()[: rng.randint(4, 30)])
                rows.prose(
                    f"{rng.choice((f'{i + 1}', '*', f'({i + 1})', 'Note:', 'Source:', 'Quelle:'))} {text}",
                    page.left,
                    page.width,
                )
            rows.close()
            page.y += self._gap(page)
        if rng.random() < 0.4:
            self._prose(page)

    def _figures(self, page: BandedPage) -> None:
        rng, style = self._rng, self._plain(page)
        columns = rng.randint(3, 13)
        year = rng.randint(1950, 2015)
        months = rng.choice(MONTHS).split()
        heads = rng.choice(
            (
                [str(year + i) for i in range(columns)],
                [months[i % 12][: rng.choice((3, 3, 12))] for i in range(columns)],
                [rng.choice(LABELS)[:12].strip() for _ in range(columns)],
                [self._words(1)[:10].capitalize() for _ in range(columns)],
                [f"Q{i % 4 + 1}/{(year + i // 4) % 100:02d}" for i in range(columns)],
                [f"({i + 1})" for i in range(columns)],
            )
        )
        most, places = rng.uniform(1, 6), rng.choice((0, 0, 1, 1, 2, 3))
        marks = rng.choice((",.", ",.", ".,", " ,", "\0."))
        gap = rng.choice(("-", "–", "n/a", "..", "*", "", "0", "x"))
        gap_share = rng.choice((0.0, 0.05, 0.3))

        def figure() -> str:
            if rng.random() < gap_share:
                return gap
            value = 10 ** rng.uniform(0, most) * rng.choice((1, 1, 1, 1, -1))
            text = f"{value:,.{places}f}".translate({ord(","): marks[0].strip("\0") or None, ord("."): marks[1]})
            return rng.choice((text, text, text, f"{text}{rng.choice(('', '%', '*', 'a'))}"))

        code = rng.random() < 0.2
        body = []
        for i in range(rng.randint(3, 44)):
            label = self._words(rng.choice((1, 2, 3, 5)))[:40].strip()
            label = f"{i + 1:02d} {label}" if code else label.capitalize()
            blank = rng.random() < 0.05
            body.append([label, *("" if blank else figure() for _ in range(columns))])
        head = [[rng.choice(("", *LABELS)), *heads]]
        if rng.random() < 0.25:
            head.append(["", *(rng.choice(("%", "€", "No.", "$", "kg", "Total")) for _ in range(columns))])
        set_grid(page, Grid(head, body, ["left", *["right"] * columns], 0), style, rng)

    def _leaders(self, page: BandedPage) -> None:
        """Lines to fill in, contents with page numbers, price lists: labels, leaders, values."""
        rng, size = self._rng, page.style.glyphs.size_px
        rows = self._rows(page, page.style, round(size * rng.uniform(1.2, 1.9)))
        rows.add(
            Cell(
                " ".join(self._corpus.passage(rng).text.split()[: rng.randint(1, 6)]),
                page.left,
                page.width,
                "center",
                page.style.heading,
            )
        )
        rows.add()
        sign = rng.choices((".", ". ", "_", "-", ""), (0.4, 0.2, 0.25, 0.05, 0.1))[0]
        contents = rng.random() < 0.5
        number = rng.randint(1, 9)
        for _ in range(rng.randint(5, 48)):
            kind = rng.random()
            if kind < 0.08:
                going = rows.prose(self._corpus.passage(rng).text[:200], page.left, page.width)
            elif kind < 0.16:
                going = rows.add()
            elif contents:
                depth = rng.choice((0, 0, 1, 2))
                number += rng.randint(0, 4)
                text = " ".join(self._corpus.passage(rng).text.split()[: rng.randint(1, 7)]).rstrip(".,;:")
                prefix = ".".join(str(rng.randint(1, 12)) for _ in range(depth + 1))
                going = self._leader(
                    page, rows, rng.choice((text, f"{prefix} {text}")), sign, str(number), depth * size
                )
            else:
                parts = rng.choice((1, 1, 2, 3))
                going = self._blanks(page, rows, sign, parts)
            if not going:
                break
        rows.close()

    def _leader(self, page: BandedPage, rows: Rows, label: str, sign: str, value: str, indent: int) -> bool:
        glyphs = page.style.glyphs
        label = " ".join(word for word in label.split() if page.drawable.issuperset(word))
        x, width = page.left + indent, page.width - indent
        room = width - glyphs.width(f"{label}  {value}")
        leader = (sign * (room // max(glyphs.width(sign), 1))).strip() if sign and room > 5 * glyphs.size_px else ""
        after = glyphs.width(f"{label} ")
        return rows.add(
            Cell(label, x, width - glyphs.width(value) - glyphs.size_px),
            Cell(leader, x + after, max(room, 0)),
            Cell(value, x, width, "right"),
        )

    def _blanks(self, page: BandedPage, rows: Rows, sign: str, parts: int) -> bool:
        """Labels with room to write, filled in at times; boxes to tick before some."""
        rng, glyphs = self._rng, page.style.glyphs
        width = page.width // parts
        cells = []
        for i in range(parts):
            x, room = page.left + i * width, width - glyphs.size_px
            label = f"{rng.choice(FORM_LABELS)}{rng.choice((':', '', '.'))}"
            if not page.drawable.issuperset(label.replace(" ", "")):
                continue
            if rng.random() < 0.15:
                side, y = round(glyphs.size_px * 0.7), page.y + glyphs.ascent - round(glyphs.size_px * 0.7)
                if page.y + rows.step_px < page.bottom:
                    for box in (
                        (x, y, x + side, y + 2),
                        (x, y + side, x + side, y + side + 2),
                        (x, y, x + 2, y + side),
                        (x + side, y, x + side + 2, y + side + 2),
                    ):
                        page.sheet.rule(*box)
                x, room = x + 2 * side, room - 2 * side
            cells.append(Cell(label, x, room))
            after = glyphs.width(f"{label} ")
            left = room - after
            if rng.random() < 0.35:
                cells.append(
                    Cell(
                        rng.choice((synthetic_text.person, synthetic_text.date, synthetic_text.phone))(rng),
                        x + after,
                        max(left, 0),
                    )
                )
            elif sign and left > 4 * glyphs.width(sign):
                cells.append(Cell((sign * (left // max(glyphs.width(sign), 1))).strip(), x + after, left))
            elif left > 2 * glyphs.size_px:
                base = page.y + glyphs.ascent + 2
                page.sheet.rule(x + after, base, x + room, base + 1)
        return rows.add(*cells)
