"""Files of page tests in the format of olmOCR-Bench: one JSON object a line, checked before anything is read.

Fields that the format does not have are refused, as a misspelt one would make a test easier than it was meant.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from trainer.evaluation.page_tests import MAX_REPEATS, Absent, Baseline, Cell, Order, PageTest, Present, plain
from trainer.evaluation.text_tables import Side
from trainer.training.errors import TrainingCode, TrainingError

BASELINE_FILE: Final = "baseline"
"""Stands for a file where tests of this kind were added, as in olmOCR-Bench's own figures."""
_COMMON: Final = frozenset({"pdf", "page", "id", "type", "max_diffs", "checked", "url", "category"})
_SIDES: Final = {side.name.lower(): side for side in Side}
_HEADINGS: Final = {"top_heading": Side.UP, "left_heading": Side.LEFT}
_PRESENT: Final = frozenset({"text", "case_sensitive", "first_n", "last_n"})
_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "present": _PRESENT,
    "absent": _PRESENT,
    "order": frozenset({"before", "after"}),
    "table": frozenset({"cell", *_SIDES, *_HEADINGS, "ignore_markdown_tables"}),
    "baseline": frozenset(
        {"max_length", "max_length_skips_image_alt_tags", "max_repeats", "check_disallowed_characters"}
    ),
}
NOT_JUDGED: Final[Mapping[str, str]] = {
    "math": "formulas are compared as they are drawn, and nothing here draws them",
    "format": "whether a text is a heading, bold or italic is not judged",
    "footnote": "marks of footnotes are not judged",
}
"""Kinds of the format that are counted and left out, and why."""


@dataclass(frozen=True, slots=True)
class PageName:
    """What a test is about.

    Attributes:
        name: a file, relative to the folder of pages, or a sample of a set.
        number: of the page in the file, from 1.
    """

    name: str
    number: int = 1

    def is_sample(self, name: str) -> bool:
        """Whether a sample of this name is the page; those of a PDF are named `FILE page NUMBER`."""
        return name == f"{self.name} page {self.number}" or (self.number == 1 and name == self.name)

    def __str__(self) -> str:
        return self.name if self.number == 1 else f"{self.name} page {self.number}"


@dataclass(frozen=True, slots=True)
class NamedTest:
    """A test of a file.

    Attributes:
        id: unique within its file.
        file: the file's name without its suffix.
        page: what it is about.
        test: what is tested.
    """

    id: str
    file: str
    page: PageName
    test: PageTest


@dataclass(frozen=True, slots=True)
class PageTests:
    """Tests of one or more files, in their order.

    Attributes:
        tests: those that can be judged.
        skipped: how many of a kind cannot be, see `NOT_JUDGED`.
    """

    tests: tuple[NamedTest, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)

    @property
    def pages(self) -> tuple[PageName, ...]:
        """Pages in order of their first test."""
        return tuple(dict.fromkeys(each.page for each in self.tests))

    def of_sample(self, name: str) -> tuple[PageTest, ...]:
        """Tests of a sample of a set."""
        return tuple(each.test for each in self.tests if each.page.is_sample(name))

    def first_pages(self, limit: int | None) -> PageTests:
        """The tests of the first pages alone; all for None."""
        kept = set(self.pages[:limit])
        return PageTests(tuple(each for each in self.tests if each.page in kept), self.skipped)

    def with_baseline(self) -> PageTests:
        """With a test of the kind `baseline` for every page that has none, as olmOCR-Bench adds them."""
        have = {each.page for each in self.tests if isinstance(each.test, Baseline)}
        added = (
            NamedTest(f"{page}_baseline", BASELINE_FILE, page, Baseline()) for page in self.pages if page not in have
        )
        return PageTests((*self.tests, *added), self.skipped)


def load_page_tests(paths: Sequence[Path]) -> PageTests:
    """Read files of tests.

    Args:
        paths: of lines with `pdf` and `page` (the file's page, from 1), or `page` alone (a sample's name); `type`, and
            that type's fields. `id` may be missing.

    Returns:
        The tests.

    Raises:
        TrainingError: a file or a line cannot be read, an id occurs twice, or no test can be judged.
    """
    tests: dict[tuple[Path, str], NamedTest] = {}
    skipped: Counter[str] = Counter()
    for path in paths:
        for number, line in _lines(path):
            place = f"line {number} of {path}"
            try:
                test = _named(_parsed_json(line), path.stem, number)
            except KeyError as error:
                raise _invalid(f"{place} is not a test: it lacks {error}") from error
            except (ValueError, TypeError, RecursionError) as error:
                raise _invalid(f"{place} is not a test: {error}") from error
            if isinstance(test, str):
                skipped[test] += 1
            elif (path, test.id) in tests:
                raise _invalid(f"{place} is not a test: the id {test.id!r} is taken")
            else:
                tests[path, test.id] = test
    if not tests:
        raise _invalid(f"{', '.join(map(str, paths))} has no test that can be judged{told_skipped(skipped)}")
    return PageTests(tuple(tests.values()), dict(skipped))


def write_page_tests(path: Path, tests: Mapping[str, Sequence[PageTest]]) -> None:
    """Write tests by page as a file that `load_page_tests` reads; pages are images, relative to the file's folder."""
    lines = []
    for page, of_page in tests.items():
        for number, test in enumerate(of_page):
            record = {"pdf": page, "page": 1, "id": f"{page}_{number:02d}", "type": test.kind, **_fields(test)}
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def told_skipped(skipped: Mapping[str, int]) -> str:
    """What was left out and why, in words; empty if nothing was."""
    parts = (f"; {count} of the kind {kind} left out: {NOT_JUDGED[kind]}" for kind, count in skipped.items())
    return "".join(parts)


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    try:
        # JSON may hold the other signs that `splitlines` parts lines at.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(f"{path} cannot be read: {error}") from error
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _parsed_json(line: str) -> Any:
    record = json.loads(line)
    # Halves of a surrogate pair could not be written into a record or a report.
    json.dumps(record, ensure_ascii=False).encode()
    return record


def _named(record: Any, file: str, number: int) -> NamedTest | str:
    """A line's test, or its kind if that is left out."""
    if not isinstance(record, dict):
        raise TypeError("it is no JSON object")
    kind = record["type"]
    if kind in NOT_JUDGED:
        return str(kind)
    return NamedTest(str(record.get("id") or f"{file}:{number}"), file, _page(record), _parsed(record))


def _page(record: Mapping[str, Any]) -> PageName:
    if not record.get("pdf"):
        return PageName(_text(record, "page"))
    return PageName(_text(record, "pdf"), _number(record, "page", 1, least=1))


def _parsed(record: Mapping[str, Any]) -> PageTest:
    kind = record["type"]
    if kind not in _FIELDS:
        raise ValueError(f"{kind!r} is none of {', '.join((*_FIELDS, *NOT_JUDGED))}")
    unknown = sorted(record.keys() - _COMMON - _FIELDS[kind])
    if unknown:
        raise ValueError(f"the kind {kind} has no {', '.join(unknown)}")
    return _PARSERS[kind](record, _number(record, "max_diffs", 0))


def _fields(test: PageTest) -> dict[str, Any]:
    """The fields of a test that was made of a truth, as such tests have no others."""
    match test:
        case Present(text=text):
            return {"text": text}
        case Order(before=before, after=after):
            return {"before": before, "after": after}
        case Cell(cell=cell, neighbours=neighbours):
            return {"cell": cell, **{side.name.lower(): text for side, text in neighbours}}
    raise TypeError(f"{test} is not made of truths")


def _present(kind: type[Present]) -> Callable[[Mapping[str, Any], int], PageTest]:
    def parse(record: Mapping[str, Any], max_diffs: int) -> PageTest:
        first, last = (_number(record, name, 0) or None for name in ("first_n", "last_n"))
        return kind(_plain(record, "text"), max_diffs, _flag(record, "case_sensitive", True), first, last)

    return parse


def _order(record: Mapping[str, Any], max_diffs: int) -> PageTest:
    before, after = _plain(record, "before"), _plain(record, "after")
    if max_diffs > min(len(before), len(after)) // 2:
        raise ValueError(f"max_diffs is {max_diffs}, more than half of a text")
    return Order(before, after, max_diffs)


def _table(record: Mapping[str, Any], max_diffs: int) -> PageTest:
    around = tuple((side, _plain(record, name)) for name, side in _SIDES.items() if record.get(name))
    headings = tuple((side, _plain(record, name)) for name, side in _HEADINGS.items() if record.get(name))
    return Cell(_plain(record, "cell"), around, headings, max_diffs, _flag(record, "ignore_markdown_tables", False))


def _baseline(record: Mapping[str, Any], _: int) -> PageTest:
    has_length = record.get("max_length") is not None
    return Baseline(
        _number(record, "max_length", 0) if has_length else None,
        _flag(record, "max_length_skips_image_alt_tags", False),
        _number(record, "max_repeats", MAX_REPEATS),
        _flag(record, "check_disallowed_characters", True),
    )


_PARSERS: Final[Mapping[str, Callable[[Mapping[str, Any], int], PageTest]]] = {
    "present": _present(Present),
    "absent": _present(Absent),
    "order": _order,
    "table": _table,
    "baseline": _baseline,
}


def _text(record: Mapping[str, Any], name: str) -> str:
    text = record[name]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name} is {text!r}, not a text")
    return text


def _plain(record: Mapping[str, Any], name: str) -> str:
    text = plain(_text(record, name))
    if not text:
        raise ValueError(f"{name} is {record[name]!r}, which is no text")
    return text


def _number(record: Mapping[str, Any], name: str, default: int, least: int = 0) -> int:
    number = record.get(name)
    if number is None:
        return default
    if not isinstance(number, int) or isinstance(number, bool) or number < least:
        raise ValueError(f"{name} is {number!r}, not a whole number from {least}")
    return number


def _flag(record: Mapping[str, Any], name: str, default: bool) -> bool:
    flag = record.get(name)
    if flag is None:
        return default
    if not isinstance(flag, bool):
        raise TypeError(f"{name} is {flag!r}, neither true nor false")
    return flag


def _invalid(message: str) -> TrainingError:
    return TrainingError(
        TrainingCode.OPTION_INVALID,
        message,
        'write lines such as {"pdf": "a.pdf", "page": 1, "id": "a1", "type": "present", "text": "Total"}',
    )
