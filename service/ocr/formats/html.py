"""HTML: one document that needs nothing else, a section for each page."""

from __future__ import annotations

from service.ocr.formats.document import ReadDocument
from service.ocr.formats.markup import escape, safe_html
from service.ocr.formats.output_format import OutputFormat, in_thread
from service.schemas import PageAnswer

# The policy is a second lock: what is shown has been sanitised.
_HEAD = """\
<!doctype html>
<html>
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="DeepSynth OCR">
<title>{title}</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
section + section {{ border-top: 1px solid #999; margin-top: 2rem; padding-top: 1rem; }}
.lines {{ white-space: pre-wrap; }}
table {{ border-collapse: collapse; }}
td, th {{ border: 1px solid #999; padding: 0.2rem 0.5rem; }}
</style>
</head>
<body>
"""


def render(document: ReadDocument) -> bytes:
    """The document; Markdown is rendered, other text keeps its lines."""
    pages, is_markdown = document.answer.pages, document.is_markdown
    if document.is_joined:
        joined = f"<section>\n{_content(document.answer.text, is_markdown=is_markdown)}</section>\n"
        sections = [joined, *(_section(page, is_markdown=is_markdown) for page in pages if page.error is not None)]
    else:
        sections = [_section(page, is_markdown=is_markdown) for page in pages]
    return (_HEAD.format(title=escape(document.name)) + "".join(sections) + "</body>\n</html>\n").encode()


def _section(page: PageAnswer, *, is_markdown: bool) -> str:
    content = _content(page.text, is_markdown=is_markdown)
    if page.error is not None:
        content = f"<p>This page could not be read: {escape(page.error.title)} ({escape(page.error.code)})</p>\n"
    return f'<section id="page-{page.page}" aria-label="Page {page.page}">\n{content}</section>\n'


def _content(text: str, *, is_markdown: bool) -> str:
    return safe_html(text) if is_markdown else f'<p class="lines">{escape(text)}</p>\n'


FORMAT = OutputFormat("html", "text/html; charset=utf-8", ".html", in_thread(render), takes_joined=True)
