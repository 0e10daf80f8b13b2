"""Court papers, drawn: numbered pleading paper, captions with their column of brackets, transcripts, stamps."""

from __future__ import annotations

from functools import partial
from typing import Final

from trainer.nano.corpus import synthetic_text
from trainer.nano.corpus.paper_words import (
    CAPTION_LINES,
    CASE_LABELS,
    COURTS,
    DISTRICTS,
    MOTIONS,
    PARTIES,
    PARTY_NAMES,
    SIGNATURES,
    STATES,
)
from trainer.nano.pages.mosaic import BandedPage
from trainer.nano.pages.papers import A4, LETTER, PaperRenderer
from trainer.nano.pages.render import RenderedPage, Tier
from trainer.nano.pages.rows import Cell, Rows

SEPARATORS: Final = (")", ")", ")", ":", ":", "§", "]", "|", "}", "*", ")(")


class CourtRenderer(PaperRenderer):
    """Renders court papers."""

    def render_court(self) -> RenderedPage:
        """Render a page of a pleading, an order or a transcript; text and errors as of `render_mosaic`."""
        sizes = (LETTER, LETTER, LETTER, (1700, 2200), A4, (1020, 1320))
        return self._render(self._court, sizes, Tier.SHEET, (19, 28))

    def _court(self, page: BandedPage) -> None:
        rng, size = self._rng, page.style.glyphs.size_px
        foot = self._foot(page) if rng.random() < 0.5 else ""
        if rng.random() < 0.5:
            self._filing_line(page)
        numbered = rng.random() < 0.5
        x, width = page.left, page.width
        rows = self._rows(page, page.style, round(size * rng.uniform(1.15, 1.4)))
        if numbered:
            every = rng.choice((1, 1, 2))
            count = rng.choice((25, 28, 28, 24, 32))
            rows.step_px = max((page.bottom - page.y) // (count * every), round(size * 1.1))
            away, top = round(size * rng.uniform(1.5, 3)), page.y
            x, width = page.left + away, page.width - away
            start = page.left - rng.randint(0, size // 2)

            def number(row: int) -> Cell | None:
                line = row // every + 1
                return Cell(str(line), start, 2 * size, "right") if row % every == 0 and line <= count else None

            rows.margin = number
            for i in range(rng.choice((0, 1, 1, 2))):
                page.sheet.rule(
                    start + round(2.4 * size) + 6 * i, top, start + round(2.4 * size) + 6 * i + 2, page.bottom
                )
            x += size
            width -= size
        if rng.random() < 0.3:
            self._transcript(rows, x, width)
        else:
            if rng.random() < 0.65:
                self._caption(page, rows, x, width)
            self._pleading(rows, x, width, double=not numbered and rng.random() < 0.5)
        if numbered and rng.random() < 0.8:
            while rows.add():
                pass
        rows.close()
        if not numbered and rng.random() < 0.4:
            self._stamp(page)
        if foot:
            page.texts.append(foot)

    def _filing_line(self, page: BandedPage) -> None:
        """What courts print above a page that was filed electronically."""
        rng, filled = self._rng, partial(synthetic_text.filled, self._rng)
        number = f"{filled('#:##')}-{rng.choice(('cv', 'cr', 'bk', 'md', 'mc'))}-{filled('#####')}"
        day = filled(rng.choice(("0#/1#/2#", "1#/2#/0#", "0#/0#/1#")))
        pages, document = rng.randint(1, 60), rng.randint(1, 400)
        where = f"Page {rng.randint(1, pages)} of {pages}"
        text = rng.choice(
            (
                f"Case {number}-{filled('@@@')} Document {document} Filed {day} {where}",
                f"Case: {number} Document #: {document} Filed: {day} {where} PageID #:{filled('####')}",
                f"FILED: {rng.choice(STATES).upper()} COUNTY CLERK {day} 0{filled('#:2#')} PM",
                f"NYSCEF DOC. NO. {document} RECEIVED NYSCEF: {day}",
                filled(f"USCA Case #2#-#### Document #{document}#### Filed: {day}"),
            )
        )
        rows = self._rows(page, page.small)
        rows.add(Cell(text, page.left, page.width, rng.choice(("center", "left", "center"))))
        rows.close()
        page.y += page.small.glyphs.size_px // 2

    def _caption(self, page: BandedPage, rows: Rows, x: int, width: int) -> None:
        rng, size = self._rng, page.style.glyphs.size_px
        if rng.random() < 0.4:
            for line in (*synthetic_text.address(rng, self._corpus), f"Attorneys for {rng.choice(PARTIES)}"):
                rows.add(Cell(line, x, width))
            rows.add()
        state = rng.choice(STATES)
        shout = rng.random() < 0.7
        titles = [f"{rng.choice(COURTS)} {state}" if rng.random() < 0.5 else rng.choice(COURTS)]
        titles += [f"{rng.choice(('', 'For the '))}{rng.choice(DISTRICTS)} District of {state}"] * (rng.random() < 0.7)
        titles += [f"County of {self._words(1).title()}"] * (rng.random() < 0.3)
        bold = page.style.heading if rng.random() < 0.5 else None
        for title in titles:
            rows.add(Cell(title.upper() if shout else title, x, width, "center", bold))
        rows.add()
        left, right = self._parties(), self._case_lines()
        middle = x + round(width * rng.uniform(0.42, 0.56))
        drop = rng.randint(0, 3)
        indents = rng.choice(((0, 0, 0), (0, 2, 4), (0, 4, 2)))
        sign = rng.choice(SEPARATORS)
        shape = rng.choices(("signs", "rule", "none"), (0.75, 0.17, 0.08))[0]
        edge = rng.choice(("-", "_", "=", "", ""))
        tail = rng.choice(("x", "X", sign, ""))
        whole = rng.choice((width, middle - x, middle - x))
        self._sign_rule(rows, edge, tail, x, whole)
        top = page.y
        for i in range(max(len(left), len(right) + drop)):
            cells = []
            if i < len(left) and left[i]:
                indent = indents[i % 3] * size
                cells.append(Cell(left[i], x + indent, middle - x - indent - size))
            if shape == "signs":
                cells.append(Cell(sign, middle, size * 2))
            if drop <= i < len(right) + drop and right[i - drop]:
                start = middle + 2 * size
                cells.append(Cell(right[i - drop], start, x + width - start, glyphs=bold if i % 2 else None))
            rows.add(*cells)
        if shape == "rule":
            page.sheet.rule(middle, top, middle + 2, page.y)
            page.sheet.rule(x, page.y, middle, page.y + 2)
        self._sign_rule(rows, edge, tail, x, whole)
        rows.add()

    def _sign_rule(self, rows: Rows, sign: str, tail: str, x: int, width: int) -> None:
        """A rule typed with one sign, which the truth holds sign by sign; told as three."""
        if sign:
            room = width - rows.glyph_width(tail)
            rows.add(Cell(sign * max(room // max(rows.glyph_width(sign), 1), 1) + tail, x, width))

    def _parties(self) -> list[str]:
        rng, lines = self._rng, []
        roles = rng.sample(PARTIES, 2)
        for i, role in enumerate(roles):
            name = rng.choice((synthetic_text.person(rng), f"{self._words(2).title()} {rng.choice(PARTY_NAMES)}"))
            lines += [f"{name.upper() if rng.random() < 0.6 else name},"]
            lines += [f"{synthetic_text.person(rng)}, and DOES 1-{rng.randint(5, 100)},"] * (rng.random() < 0.3)
            lines += [""] * (rng.random() < 0.6) + [f"{role}{rng.choice((',', '.'))}"] + [""] * (rng.random() < 0.4)
            if i == 0:
                lines += [rng.choice(("v.", "vs.", "- against -", "-v-", "-against-", "V."))]
                lines += [""] * (rng.random() < 0.5)
        if rng.random() < 0.12:
            lines = ["In re", "", *lines[:2], ""]
        return lines

    def _case_lines(self) -> list[str]:
        rng = self._rng
        number = (
            synthetic_text.iban(rng)
            if rng.random() < 0.4
            else f"{rng.randrange(30):02d}-cv-{rng.randrange(99_999):05d}"
        )
        lines = [f"{rng.choice(CASE_LABELS)} {number}", ""]
        title = rng.choice(MOTIONS).split()
        lines += [" ".join(title[i : i + 3]).upper() for i in range(0, len(title), 3)]
        for label in rng.sample(CAPTION_LINES, rng.randint(0, 5)):
            lines.append(f"{label} {rng.choice((synthetic_text.date, synthetic_text.person))(rng)}")
        return lines

    def _pleading(self, rows: Rows, x: int, width: int, *, double: bool) -> None:
        rng, size = self._rng, rows.size_px
        if double:
            rows.step_px = round(size * rng.uniform(1.7, 2.2))
        if rng.random() < 0.6:
            rows.add(Cell(rng.choice(MOTIONS).upper(), x, width, "center"))
        number = rng.randint(1, 40)
        indent = round(size * rng.uniform(1.5, 4)) if rng.random() < 0.8 else 0
        counted = rng.random() < 0.4
        for _ in range(rng.randint(2, 24)):
            kind, text = rng.random(), self._passage()
            if kind < 0.12:
                text = f"{'IVX'[rng.randrange(3)]}. {' '.join(text.split()[: rng.randint(2, 6)]).upper()}"
                going = rows.add(Cell(text, x, width, rng.choice(("center", "left"))))
            elif kind < 0.25:
                inner = 3 * size
                going = rows.prose(f"“{text}” {self._citation()}", x + inner, width - 2 * inner)
            else:
                text = f"{number}. {text}" if counted else f"{text} {self._citation()}" if kind < 0.5 else text
                number += 1
                going = rows.prose(text, x, width, indent)
            if not going:
                return
            if rng.random() < 0.3:
                rows.add()
        if rng.random() < 0.6:
            self._signature(rows, x, width)

    def _passage(self) -> str:
        languages = self._corpus.languages
        return self._corpus.paragraph(self._rng, "en" if "en" in languages else languages[0])

    def _citation(self) -> str:
        rng = self._rng
        reporter = rng.choice(
            ("U.S.", "F.2d", "F.3d", "F. Supp. 2d", "Cal. 4th", "S. Ct.", "N.Y.2d", "So. 2d", "A.D.3d")
        )
        names = f"{synthetic_text.person(rng).split()[-1]} v. {self._words(1).title()}"
        small, large = rng.randint(1, 60), rng.randint(61, 999)
        shape = rng.choice(
            (
                f"{names}, {large} {reporter} {small}, {small + 2} (19##).",
                f"See {small} U.S.C. § {large}#(a)({small % 9}).",
                f"(Fed. R. Civ. P. {small}(b)({small % 7}); Dkt. No. {large} at {small}:1#-2#.)",
                f"(Cal. Code Civ. Proc., §§ {large}.##, 1#{large}.)",
                f"Id. at {large}.",
                f"¶¶ {small}–{large}.",
            )
        )
        return synthetic_text.filled(rng, shape)

    def _signature(self, rows: Rows, x: int, width: int) -> None:
        rng = self._rng
        start = x + (width // 2 if rng.random() < 0.7 else 0)
        for label in rng.sample(SIGNATURES, rng.randint(2, 5)):
            text = label
            if rng.random() < 0.3:
                rows.add(Cell("_" * rng.randint(14, 34), start, x + width - start))
                text = synthetic_text.person(rng)
            elif label.endswith(":") or label == "/s/":
                text = f"{label} {rng.choice((synthetic_text.date, synthetic_text.person))(rng)}"
            if not rows.add(Cell(text, start, x + width - start)):
                return

    def _transcript(self, rows: Rows, x: int, width: int) -> None:
        """Questions and answers of a deposition."""
        rng, size = self._rng, rows.size_px
        for _ in range(40):
            kind = rng.random()
            text = " ".join(self._passage().split()[: rng.randint(2, 40)])
            if kind < 0.2:
                name = synthetic_text.person(rng).split()[-1].upper()
                text = f"{rng.choice(('MR.', 'MS.', 'BY MR.', 'BY MS.'))} {name}: {text if kind < 0.14 else ''}".strip()
            elif kind < 0.28:
                text = f"{rng.choice(('THE WITNESS', 'THE COURT', 'THE REPORTER', 'THE CLERK'))}: {text}"
            else:
                text = f"{rng.choice(('Q', 'A', 'Q.', 'A.'))} {text}"
            if not rows.prose(text, x, width, rng.choice((size * 2, size * 3))):
                return
