"""Tables from HTML to Markdown and back; what is no table that can be converted stays as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.ocr.tables import MAX_CELLS, TableFormat, convert_tables, only_table

HTML, MARKDOWN = TableFormat.HTML, TableFormat.MARKDOWN


def rows(*cells: str) -> str:
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


@pytest.mark.parametrize(
    ("table", "lines"),
    [
        (rows("<td>a</td><td>b</td>", "<td>1</td><td>2</td>"), ["| a | b |", "| --- | --- |", "| 1 | 2 |"]),
        (
            rows('<td colspan="2">Both</td><td>c</td>', "<td>1</td><td>2</td><td>3</td>"),
            ["| Both |  | c |", "| --- | --- | --- |", "| 1 | 2 | 3 |"],
        ),
        (
            rows("<th>Year</th><th>Sum</th>", '<td rowspan="2">2026</td><td>1</td>', "<td>2</td>"),
            ["| Year | Sum |", "| --- | --- |", "| 2026 | 1 |", "|  | 2 |"],
        ),
        (
            rows('<td rowspan="9">x</td><td>a</td>', "<td>b</td>"),
            ["| x | a |", "| --- | --- |", "|  | b |"],
        ),
        (rows("<td>a</td>", "<td>b</td><td>c</td>"), ["| a |  |", "| --- | --- |", "| b | c |"]),
        (rows("<td>a | b</td><td>1\n2</td>"), ["| a \\| b | 1 2 |", "| --- | --- |"]),
        (rows("<td>5 &lt; 6 &amp; 7 > 2</td>"), ["| 5 < 6 & 7 > 2 |", "| --- |"]),
        (rows("<td>&lt;b&gt; &amp;lt;</td>"), ["| &lt;b> &amp;lt; |", "| --- |"]),
        (rows("<td>H<sub>2</sub>O<br>x</td>"), ["| H<sub>2</sub>O<br>x |", "| --- |"]),
        (rows("<td>\\(a|b\\)</td>"), ["| \\(a\\|b\\) |", "| --- |"]),
        (
            "<table border=1><thead><tr><th>a</th></tr></thead><tbody><tr><td>b</tbody></table>",
            ["| a |", "| --- |", "| b |"],
        ),
    ],
)
def test_html_becomes_markdown(table: str, lines: list[str]) -> None:
    assert convert_tables(table, MARKDOWN) == "\n".join(lines)


def test_text_around_tables_stays_and_is_set_apart() -> None:
    table = rows("<td>a</td>")
    text = f"# Head\nBefore {table}After\n{table}"
    pipes = "| a |\n| --- |"
    assert convert_tables(text, MARKDOWN) == f"# Head\nBefore\n\n{pipes}\n\nAfter\n\n{pipes}"


@pytest.mark.parametrize(
    "text",
    [
        "no table",
        "<table><tr><td>never closed",
        "<table></table>",
        rows("<td><table><tr><td>in</td></tr></table></td>"),
        rows("<td><img src=x></td>"),
        "<table>loose<tr><td>a</td></tr></table>",
        rows('<td colspan="999999999">a</td>'),
        rows(f'<td colspan="150" rowspan="{MAX_CELLS}">a</td>', *["<td>x</td>"] * 200),
        rows(*["<td>a</td>"] * (MAX_CELLS + 1)),
        "<table " * 10_000,
        "| a | b |\n| --- | --- |\n| 1 | 2 |",
    ],
)
def test_what_cannot_become_markdown_stays(text: str) -> None:
    assert convert_tables(text, MARKDOWN) == text


def test_markdown_becomes_html() -> None:
    text = "Before\n\n| a | b \\| c |\n|:---|---|\n| **1** | 2<3 |\n| x |\n\nAfter"
    table = (
        "<table><tr><th>a</th><th>b | c</th></tr><tr><td><strong>1</strong></td><td>2&lt;3</td></tr>"
        "<tr><td>x</td><td></td></tr></table>"
    )
    assert convert_tables(text, HTML) == f"Before\n\n{table}\n\nAfter"
    assert convert_tables(f"{rows('<td>a</td>')}\n\na | b", HTML) == f"{rows('<td>a</td>')}\n\na | b"


def test_a_cell_cannot_end_its_table() -> None:
    text = "| a |\n| --- |\n| </td></table><script>x</script> |"
    assert convert_tables(text, HTML) == "<table><tr><th>a</th></tr><tr><td></td></tr></table>"


PLAIN = st.text(st.sampled_from("ab1 .,"), max_size=6).map(lambda text: " ".join(text.split()))


@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(PLAIN, min_size=n, max_size=n), min_size=1, max_size=5)))
def test_a_table_without_spans_comes_back(grid: list[list[str]]) -> None:
    table = rows(*("".join(f"<td>{cell}</td>" for cell in row) for row in grid))
    there = convert_tables(table, MARKDOWN)
    back = only_table(convert_tables(there, HTML))
    assert back is not None
    assert back[0].grid() == grid


@given(st.text(st.sampled_from('<>/tabledrh |-\n="2cospan&;'), max_size=200))
def test_any_text_is_taken(text: str) -> None:
    for form in TableFormat:
        convert_tables(text, form)
    only_table(text)
