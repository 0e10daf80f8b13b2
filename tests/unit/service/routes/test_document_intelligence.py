from __future__ import annotations

from typing import Any

from service.ocr.answer import to_answer
from service.ocr.confidence import Granularity, PageConfidence, Span
from service.ocr.outcome import PageStatus
from service.ocr.reader import DocumentResult, PageResult
from service.routes.document_intelligence import to_document
from service.schemas import AnalyzedDocument
from shared.contract.prompts import Task

WORDS = PageConfidence(Granularity.WORD, True, (Span(0, 5, 1, 0.75), Span(6, 11, 1, 0.5)), (), None, None)


def document_of(*pages: PageResult, task: Task = Task.FREE) -> AnalyzedDocument:
    answer = to_answer(DocumentResult("nano", list(pages)), "job-1", receive_s=0.0, latency_s=0.0)
    return to_document(answer, task)


def page_of(number: int, text: str, status: PageStatus = PageStatus.OK, **changes: Any) -> PageResult:
    return PageResult(number, status, 400, 300, text=text, **changes)


def shown(document: AnalyzedDocument) -> list[list[str]]:
    """What the content has where each page's words are said to be."""
    return [
        [document.content[word.span.offset : word.span.offset + word.span.length] for word in page.words]
        for page in document.pages
    ]


def test_spans_lead_to_the_words_of_each_page():
    document = document_of(page_of(1, "one two\ntwo"), page_of(2, ""), page_of(4, "two"))
    assert document.content == "one two\ntwo\n\ntwo"
    assert shown(document) == [["one", "two", "two"], [], ["two"]]
    assert [page.page_number for page in document.pages] == [1, 2, 4]
    assert [[line.content for line in page.lines] for page in document.pages] == [["one two", "two"], [], ["two"]]


def test_marks_of_markdown_are_in_no_word():
    document = document_of(page_of(1, "# Ships\n\n| **a** | b |\n| --- | --- |\n| c | d |"), task=Task.MARKDOWN)
    assert shown(document) == [["Ships", "a", "b", "c", "d"]]
    assert document.content_format == "markdown"


def test_words_have_their_own_confidence_where_it_is_known():
    (page,) = document_of(page_of(1, "heron cedar", words=WORDS)).pages
    assert [word.confidence for word in page.words] == [0.75, 0.5]


def test_a_page_that_cannot_be_read_is_a_warning():
    document = document_of(page_of(1, "one"), page_of(2, "", PageStatus.UNREADABLE), page_of(3, "", PageStatus.BLANK))
    assert [(warning.code, warning.target) for warning in document.warnings] == [("unreadable", "#/pages/2")]
