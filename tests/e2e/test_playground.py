"""The playground in a browser, driven by Playwright: needs the package `playwright` and a Chromium."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import ImageDraw

from shared.contract.manifest import BaseIdentity
from shared.contract.publication import publish
from shared.contract.volume import AdapterVolume
from tests.support.adapters import announcement, write_peft
from tests.support.pdf import make_pdf
from tests.support.server import ServerProcess, running_server
from tests.support.service import encode, page_image, png
from tests.support.sub_path import below_a_path

pytestmark = pytest.mark.e2e

PDF = {"name": "three.pdf", "mimeType": "application/pdf", "buffer": make_pdf(["one", "", "three"], size_pt=(300, 400))}
PNG = {"name": "page.png", "mimeType": "image/png", "buffer": png(size=(640, 400))}
LIMIT_S = 300.0
"""For what a quiet machine does in a second or two."""
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=2</script>[a](javascript:window.hacked=3)'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("adapters")
    volume = folder / "volume"
    volume.mkdir()
    with running_server(ADAPTER_DIR=str(volume), ADAPTER_STATE_DIR=str(folder / "state")) as process:
        base = BaseIdentity(model_id="fake", revision="ab" * 32)
        publish(AdapterVolume(volume), write_peft(folder / "trained", seed=1), announcement("invoices", base=base))
        end_s = time.monotonic() + 300
        while "invoices" not in process.get("/v1/models").text:
            assert time.monotonic() < end_s, process.log.read_text()
            time.sleep(0.1)
        yield process


@pytest.fixture(scope="module")
def keeping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, Path]]:
    """A service that keeps samples, takes jobs, and few pages in a request; and the folder of its samples."""
    folder = tmp_path_factory.mktemp("keeping")
    samples = {"OCR_SAVE_SAMPLES": "true", "OCR_PRIVACY_ALLOWED": "true", "SAMPLE_DIR": str(folder / "samples")}
    with running_server(**samples, JOB_DIR=str(folder / "jobs"), MAX_PDF_PAGES="5", FAKE_STEP_MS="30") as process:
        yield process, folder / "samples"


@pytest.fixture(scope="module")
def background(keeping: tuple[ServerProcess, Path]) -> ServerProcess:
    """A service that takes jobs, and few pages in a request."""
    return keeping[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium is installed")
    with api.sync_playwright() as driver:
        # A container's root cannot start Chromium's own sandbox.
        started = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@contextlib.contextmanager
def opened(
    browser: Any,
    server: ServerProcess,
    *,
    width: int = 1280,
    refusals: int = 0,
    before: Callable[[Any], None] = lambda _: None,
    url: str | None = None,
    **options: Any,
) -> Iterator[Any]:
    """The page when its models are there; at the end, that it was quiet and asked nothing outside its own address.

    Chromium itself writes a line to the console for each of the `refusals`, answers of 400 and more.
    """
    context = browser.new_context(viewport={"width": width, "height": 800}, **options)
    context.set_default_timeout(LIMIT_S * 1000)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("request", lambda request: asked.append(request.url))
    before(page)
    home = url or server.url
    page.goto(f"{home}/")
    page.wait_for_selector("#service.ready")
    yield page
    context.close()
    assert [line for line in said if "Failed to load resource" not in line] == []
    assert len(said) == refusals
    origin = "/".join(home.split("/")[:3])
    assert [each for each in asked if not each.startswith((f"{home}/", f"blob:{origin}/"))] == []


def read(page: Any) -> None:
    page.click("#go")
    finished(page)


def read_image(page: Any, file: Any) -> None:
    page.set_input_files("#file", files=[file])
    page.wait_for_selector("#image")
    read(page)


def finished(page: Any) -> None:
    page.wait_for_selector("#text[aria-busy=false] .page")
    page.wait_for_selector('#go:text-is("Read"):enabled')


def becomes(page: Any, expression: str, value: Any) -> None:
    """Wait for a value; the page's policy lets Playwright's own waiting evaluate nothing a second time."""
    end_s = time.monotonic() + LIMIT_S
    while (seen := page.evaluate(expression)) != value:
        assert time.monotonic() < end_s, f"{expression} is {seen}"
        time.sleep(0.05)


def answer_with(
    page: Any, text: str, *, ends: bool = True, whole: dict[str, Any] | None = None, **changes: Any
) -> None:
    """Let `POST /ocr` answer a stream of one page with this text."""
    one = {
        "page": 1, "status": "ok", "error": None, "warnings": [], "text": text, "width_px": 640, "height_px": 400,
        "finish_reason": "stop", "confidence": 0.9, "turned_degrees": 0, "unread": [], "regions": [], **changes,
    }  # fmt: skip
    answer = {"text": text, "pages": [one], "usage": {"completion_tokens": 3}, "model_id": "fake", **(whole or {})}
    events: list[tuple[str, Any]] = [("delta", {"page": 1, "text": text})]
    if ends:
        events += [("page", one), ("answer", answer)]
    body = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)
    page.route("**/ocr", lambda route: route.fulfill(body=body, content_type="text/event-stream"))


def test_image_is_read_as_the_api_reads_it(browser: Any, server: ServerProcess) -> None:
    expected = server.post("/ocr", files={"file": png(size=(640, 400))}).json()["text"]
    with opened(browser, server) as page:
        read_image(page, PNG)
        assert page.inner_text("#text .plain") == expected
        assert page.inner_text("#text .state") == "Read"
        assert page.evaluate("document.getElementById('image').naturalWidth") == 640


@pytest.mark.parametrize("kind", ["pdf", "tiff"])
def test_document_is_shown_page_by_page(kind: str, browser: Any, server: ServerProcess) -> None:
    pages = [page_image(f"Page {number} of a scanned report", (300, 400)) for number in range(3)]
    tiff = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    file = PDF if kind == "pdf" else {"name": "three.tif", "mimeType": "image/tiff", "buffer": tiff}
    with opened(browser, server) as page:
        page.set_input_files("#file", files=[file])
        page.wait_for_selector("#thumbs li:nth-child(3) img")
        assert page.inner_text("#position") == "1 / 3"
        first = page.get_attribute("#image", "src")
        page.keyboard.press("ArrowRight")
        page.wait_for_selector('#thumbs li:nth-child(2) [aria-current="page"]')
        page.wait_for_selector(f'#image:not([src="{first}"])')
        page.click("#thumbs li:nth-child(3) button")
        page.wait_for_selector('#position:text-is("3 / 3")')
        assert page.is_disabled("#next")
        read(page)
        states = [each.inner_text() for each in page.query_selector_all("#text .state")]
        assert states == (["Read", "Blank", "Read"] if kind == "pdf" else ["Read"] * 3)
        assert page.get_attribute("#thumbs li:nth-child(1) button", "aria-label") == "Page 1, read"


def test_hostile_text_is_shown_as_text(browser: Any, server: ServerProcess) -> None:
    cell = f"<td rowspan=2 onmouseover='a()'>{HOSTILE}</td>"
    table = f'<table onclick="window.hacked=4" style="x:y"><tr>{cell}</tr></table>'
    with opened(browser, server) as page:
        answer_with(page, f"# {HOSTILE}\n\n{HOSTILE}\n\n{table}\n\n<iframe src=//x.invalid></iframe><svg onload=a()>")
        page.set_input_files("#file", files=[PNG])
        page.select_option("#task", "markdown")
        read(page)
        shown = page.inner_text("#text .rendered")
        assert shown.count('<img src=x onerror="window.hacked=1">') == 3
        assert shown.count("<script>") == 3
        assert "<iframe src=//x.invalid>" in shown
        names = page.evaluate("[...document.querySelectorAll('#text .rendered *')].map((each) => each.nodeName)")
        assert set(names) <= {"H4", "P", "DIV", "TABLE", "TR", "TD"}
        kept = page.evaluate(
            "[...document.querySelectorAll('#text .rendered *')].flatMap((each) => each.getAttributeNames())"
        )
        assert set(kept) <= {"class", "data-level", "rowspan"}
        page.click("text=Source")
        page.wait_for_selector("#text .source")
        assert HOSTILE in page.inner_text("#text .source")
        assert page.evaluate("typeof window.hacked") == "undefined"


def test_markdown_is_rendered(browser: Any, server: ServerProcess) -> None:
    table = "<table><tr><td colspan=2>m</td></tr></table>"
    text = f"## Head\n\n- a **b**\n- c\n\n| x | y |\n|---|---|\n| \u00a31,204.50 | 2 &lt; 3 |\n\n1 * 2 * 3\n\n{table}"
    with opened(browser, server) as page:
        answer_with(page, text)
        page.set_input_files("#file", files=[PNG])
        page.select_option("#task", "markdown")
        read(page)
        assert page.inner_text(".rendered [data-level='2']") == "Head"
        assert [each.inner_text() for each in page.query_selector_all(".rendered li")] == ["a b", "c"]
        assert page.inner_text(".rendered strong") == "b"
        assert [each.inner_text() for each in page.query_selector_all(".rendered td")] == [
            "\u00a31,204.50",
            "2 < 3",
            "m",
        ]
        assert page.locator(".rendered .number").all_inner_texts() == ["x", "\u00a31,204.50"]
        assert page.input_value("#format") == "markdown"
        assert page.get_attribute(".rendered td[colspan]", "colspan") == "2"
        assert "1 * 2 * 3" in page.inner_text(".rendered")


def test_everything_is_reached_by_keyboard(browser: Any, server: ServerProcess) -> None:
    with opened(browser, server) as page:
        reached = []
        for _ in range(20):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id"))
        controls = ["model", "other", "task", "more", "choose", "sample", "text", "format"]
        assert [each for each in dict.fromkeys(reached) if each in controls] == controls
        # The sample is read at once; what else is chosen waits for the button, or for Ctrl+Enter anywhere.
        page.focus("#sample")
        page.keyboard.press("Enter")
        finished(page)
        with page.expect_request("**/ocr"):
            page.keyboard.press("Control+Enter")
        finished(page)
        page.set_input_files("#file", files=[PDF])
        page.wait_for_selector("#thumbs img")
        page.focus("#thumbs [aria-current=page]")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("End")
        page.keyboard.press("ArrowLeft")
        assert page.evaluate("document.activeElement.dataset.page") == "2"
        assert page.inner_text("#position") == "2 / 3"
        # In a field, the keys belong to the field.
        page.focus("#pages")
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#position") == "2 / 3"


@pytest.mark.parametrize("width", [320, 375, 768])
def test_narrow_screen_needs_no_sideways_scrolling(width: int, browser: Any, server: ServerProcess) -> None:
    with opened(browser, server, width=width, has_touch=True) as page:
        row = "".join(f"<td>column {number}</td>" for number in range(12))
        answer_with(page, f"{'w' * 300}\n\n<table><tr>{row}</tr></table>")
        page.set_input_files("#file", files=[PDF])
        page.wait_for_selector("#thumbs img")
        page.select_option("#task", "markdown")
        page.select_option("#other", "invoices")
        read(page)
        page.select_option("#other", "")
        read(page)
        page.click("#code summary")
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_base_and_adapter_are_compared(browser: Any, server: ServerProcess) -> None:
    files = {"file": PNG["buffer"]}
    texts = [server.post("/ocr", files=files, data={"model_id": each}).json()["text"] for each in ("fake", "invoices")]
    with opened(browser, server, color_scheme="dark") as page:
        page.set_input_files("#file", files=[PNG])
        page.select_option("#other", "invoices")
        read(page)
        columns = page.query_selector_all("#text .column")
        assert [each.query_selector(".source").inner_text() for each in columns] == texts
        assert columns[0].query_selector("del") is not None
        assert columns[1].query_selector("ins") is not None
        assert "differ" in page.inner_text("#text .page-head")
        kept = [
            page.evaluate(f"[...document.querySelector('#text .column:nth-child({column}) .source').childNodes]"
                          ".filter((each) => each.nodeType === 3).map((each) => each.data).join('')")
            for column in (1, 2)
        ]  # fmt: skip
        assert kept[0] == kept[1] != ""


def test_boxes_and_their_text_light_each_other(browser: Any, server: ServerProcess) -> None:
    regions = [
        {"label": "title", "box_px": [10, 10, 300, 100], "text": "A title"},
        {"label": "text", "box_px": [10, 150, 600, 380], "text": "Some text"},
    ]
    with opened(browser, server) as page:
        answer_with(page, "A title\nSome text", regions=regions)
        page.set_input_files("#file", files=[PNG])
        page.select_option("#task", "ocr")
        read(page)
        page.hover('#boxes rect[data-region="1"]')
        assert page.inner_text(".passage.lit") == "Some text"
        page.hover("#text .passage >> nth=0")
        page.wait_for_selector("#boxes rect.lit")
        assert page.get_attribute("#boxes rect.lit", "data-region") == "0"


WORDS = [("**Total**", 0.4), ("due:", 0.97), ("12,40", 0.85), ("due:", 0.3)]


def answer_with_words(page: Any, text: str, **changes: Any) -> None:
    words = [{"text": word, "start": 0, "end": 0, "line": 1, "confidence": confidence} for word, confidence in WORDS]
    answer_with(page, text, words=words, calibrated=True, **changes)


@pytest.mark.parametrize(("task", "first"), [("free", "**Total**"), ("markdown", "Total")])
def test_doubtful_words_are_marked_and_reached_by_keyboard(
    task: str, first: str, browser: Any, server: ServerProcess
) -> None:
    with opened(browser, server) as page:
        answer_with_words(page, "**Total** due: 12,40\n\ndue:")
        page.set_input_files("#file", files=[PNG])
        page.select_option("#task", task)
        assert page.is_hidden("#review")
        read(page)
        marks = page.locator("mark.doubtful")
        assert marks.all_inner_texts() == [first, "12,40", "due:"]
        assert marks.nth(0).get_attribute("aria-description") == "doubtful, 40 % sure"
        # Not by colour alone.
        assert "wavy" in marks.nth(0).evaluate("mark => getComputedStyle(mark).textDecoration")
        assert page.inner_text("#review-said") == "3 doubtful words"
        page.keyboard.press("F8")
        page.keyboard.press("F8")
        assert page.evaluate("document.activeElement.textContent") == "12,40"
        assert page.inner_text("#review-said") == "2 of 3: 12,40, 85 % sure"
        page.keyboard.press("Shift+F8")
        page.keyboard.press("Shift+F8")
        assert page.inner_text("#review-said") == "3 of 3: due:, 30 % sure"
        page.click("#doubtful-next")
        assert page.evaluate("document.activeElement.textContent") == first


def test_threshold_is_changed_without_reading_again(browser: Any, server: ServerProcess) -> None:
    with opened(browser, server) as page:
        answer_with_words(page, "**Total** due: 12,40\n\ndue:")
        page.set_input_files("#file", files=[PNG])
        read(page)
        text = page.inner_text("#text .plain")
        page.fill("#threshold", "0.35")
        assert page.locator("mark.doubtful").all_inner_texts() == ["due:"]
        page.fill("#threshold", "0")
        assert page.inner_text("#review-said") == "No doubtful words"
        assert page.is_disabled("#doubtful-next")
        page.fill("#threshold", "1")
        assert page.locator("mark.doubtful").count() == 4
        assert page.inner_text("#text .plain") == text


def test_words_of_the_service_are_reviewed(browser: Any, server: ServerProcess) -> None:
    answer = server.post("/ocr", files={"file": png(size=(640, 400))}, data={"review_threshold": "0.9"})
    expected = [word["text"] for word in answer.json()["pages"][0]["doubtful_words"]]
    with opened(browser, server) as page:
        page.set_input_files("#file", files=[PNG])
        read(page)
        assert page.locator("mark.doubtful").all_inner_texts() == expected
        assert "not calibrated" in page.evaluate(
            "getComputedStyle(document.querySelector('#review label'), '::after').content"
        )


def test_stream_that_breaks_off_is_told_from_one_that_ended(browser: Any, server: ServerProcess) -> None:
    with opened(browser, server) as page:
        answer_with(page, "half a te", ends=False)
        page.set_input_files("#file", files=[PNG])
        read(page)
        assert "stream_cut" in page.inner_text("#problem")
        assert page.inner_text("#text .state") == "Stopped"
        assert "half a te" in page.inner_text("#text")


def test_reading_is_stopped(browser: Any, server: ServerProcess) -> None:
    with opened(browser, server) as page:
        # Never answered.
        page.route("**/ocr", lambda route: None)
        page.set_input_files("#file", files=[PNG])
        page.wait_for_selector("#image")
        page.click("#go")
        page.wait_for_selector('#go:text-is("Stop")')
        page.click("#go")
        finished(page)
        assert page.inner_text("#text .state") == "Stopped"
        assert page.is_hidden("#problem")


def test_file_that_is_not_read_says_what_it_is(browser: Any, server: ServerProcess) -> None:
    with opened(browser, server, refusals=1) as page:
        page.set_input_files(
            "#file", files=[{"name": "a.pdf", "mimeType": "application/pdf", "buffer": b"PK\3\4" * 99}]
        )
        page.wait_for_selector("#problem:visible")
        assert "unsupported_format" in page.inner_text("#problem")
        assert page.inner_text("#no-picture p") == "This file cannot be read."
        assert page.is_disabled("#go")
        with page.expect_file_chooser():
            page.click("text=Choose another file")
        page.set_input_files("#file", files=[PDF])
        page.wait_for_selector("#thumbs li:nth-child(3) img")
        assert page.is_hidden("#problem")


def test_file_is_dropped_and_pasted(browser: Any, server: ServerProcess) -> None:
    with opened(browser, server) as page:
        for kind, member in (("drop", "dataTransfer"), ("paste", "clipboardData")):
            page.evaluate(
                """async ([kind, member, address]) => {
                    const blob = await (await fetch(address)).blob();
                    const carried = new DataTransfer();
                    carried.items.add(new File([blob], `${kind}.png`, { type: "image/png" }));
                    const event = kind === "drop"
                        ? new DragEvent(kind, { [member]: carried, bubbles: true })
                        : new ClipboardEvent(kind, { [member]: carried, bubbles: true });
                    document.body.dispatchEvent(event);
                }""",
                [kind, member, "/web/sample-invoice.png"],
            )
            page.wait_for_selector(f'#name:text-is("{kind}.png")')
            page.wait_for_selector("#sheet:visible")


def test_failed_page_says_why(browser: Any, server: ServerProcess) -> None:
    error = {"code": "undecodable_file", "title": "The page cannot be decoded.", "retryable": False}
    with opened(browser, server) as page:
        answer_with(page, "", status="failed", error=error)
        page.set_input_files("#file", files=[PNG])
        read(page)
        assert page.inner_text("#text .state") == "Failed"
        assert page.inner_text("#text .why") == "The page cannot be decoded. (undecodable_file)"


def test_answer_is_downloaded_under_the_files_name(browser: Any, server: ServerProcess, tmp_path: Path) -> None:
    with opened(browser, server, accept_downloads=True) as page:
        page.set_input_files("#file", files=[PNG])
        read(page)
        for name, suffix, start in (
            ("markdown", ".md", b""),
            ("json", ".json", b"{"),
            ("searchable-pdf", ".pdf", b"%PDF"),
        ):
            page.select_option("#format", name)
            with page.expect_download() as saving:
                page.click("#download")
            assert saving.value.suggested_filename.startswith("page")
            assert saving.value.suggested_filename.endswith(suffix)
            saving.value.save_as(tmp_path / name)
            assert (tmp_path / name).read_bytes().startswith(start)


def test_code_is_the_request_and_is_copied_without_the_clipboard_interface(browser: Any, server: ServerProcess) -> None:
    with opened(browser, server) as page:
        page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        page.reload()
        page.wait_for_selector("#service.ready")
        page.set_input_files("#file", files=[{**PNG, "name": "it's.png"}])
        page.select_option("#task", "ocr")
        page.click("#code summary")
        assert page.text_content("#snippet").split() == [
            "curl", "-F", "file=@'it'\\''s.png'", "\\", "-F", "model_id=fake", "\\", "-F", "task=ocr", "\\",
            f"{server.url}/ocr",
        ]  # fmt: skip
        page.click("#copy-code")
        page.wait_for_selector('#note:text-is("Copied")')
        page.click("text=Python")
        compile(page.text_content("#snippet"), "snippet", "exec")
        assert '"task": "ocr"' in page.text_content("#snippet")


def edits(before: str, after: str) -> int:
    """Fewest characters to take away and to add."""
    lengths = [0] * (len(after) + 1)
    for left in before:
        last = lengths
        lengths = [0]
        for index, right in enumerate(after, 1):
            lengths.append(last[index - 1] + 1 if left == right else max(last[index], lengths[-1]))
    return len(before) + len(after) - 2 * lengths[-1]


def test_differences_are_complete_and_minimal(browser: Any, server: ServerProcess) -> None:
    chance = random.Random(7)
    texts = ["".join(chance.choices("abc ", k=chance.randrange(30))) for _ in range(400)]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    pairs += [("", ""), ("a", ""), ("same", "same"), ("caf\U0001f600", "cafe\U0001f600")]
    with opened(browser, server) as page:
        found = page.evaluate(
            "async (pairs) => { const { diff } = await import('/web/diff.js');"
            " return pairs.map((pair) => diff(...pair)); }",
            pairs,
        )
        # Too different for the algorithm's limit: still both texts, whole.
        long = [chr(0x4E00 + number) for number in range(4000)]
        apart = page.evaluate(
            "async ([a, b]) => (await import('/web/diff.js')).diff(a, b)", ["".join(long), "".join(reversed(long))]
        )
    for (before, after), result in zip(pairs, found, strict=True):
        assert "".join(text for text, _ in result["before"]) == before
        assert "".join(text for text, _ in result["after"]) == after
        kept = ["".join(text for text, changed in result[side] if not changed) for side in ("before", "after")]
        assert kept[0] == kept[1]
        assert result["changed"] == edits(before, after)
    assert "".join(text for text, _ in apart["before"]) == "".join(long)
    assert "".join(text for text, _ in apart["after"]) == "".join(reversed(long))


@pytest.mark.parametrize(
    ("task", "whole"),
    [
        ("markdown", "# Head\n2 < 3\n\nmore"),
        ("ocr", "title# Head\n2 < 3\n\ntextmore"),
        ("free", "title# Head\n2 < 3\n\ntextmore"),
    ],
)
def test_no_part_of_a_marker_is_shown_while_text_arrives(
    task: str, whole: str, browser: Any, server: ServerProcess
) -> None:
    first = "<|ref|>title<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>\n# Head\n2 < 3\n\n"
    given = f"{first}<|ref|>text<|/ref|><|det|>[[5, 6, 7, 8]]<|/det|>\nmore"
    with opened(browser, server) as page:
        shown = page.evaluate(
            "async ([text, task]) => { const { withoutMarkers } = await import('/web/text.js');"
            " return [...text].map((_, end) => withoutMarkers(text.slice(0, end + 1), task)); }",
            [given, task],
        )
    assert shown[-1] == whole
    assert [each for each in shown if not whole.startswith(each)] == []


def kept_records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "pages").glob("*.json"))]


def test_page_is_corrected_in_place_by_keyboard(browser: Any, keeping: tuple[ServerProcess, Path]) -> None:
    server, folder = keeping
    with opened(browser, server) as page:
        page.set_input_files("#file", files=[PDF])
        page.wait_for_selector("#thumbs img")
        read(page)
        labels = [each.get_attribute("aria-label") for each in page.query_selector_all("#text .correct")]
        assert labels == [f"Correct the text of page {number}" for number in (1, 2, 3)]
        before = page.inner_text("#text article:nth-of-type(3) .plain")
        page.focus("#text article:nth-of-type(3) .correct")
        page.keyboard.press("Enter")
        area = page.get_by_label("What is printed on page 3")
        assert area.input_value() == before
        assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
        # Escape leaves everything as it was, and the focus where it came from.
        page.keyboard.type("never saved")
        page.keyboard.press("Escape")
        assert page.inner_text("#text article:nth-of-type(3) .plain") == before
        assert page.evaluate("document.activeElement.className") == "correct"
        page.keyboard.press("Enter")
        area.fill("Zeile eins \u20ac\nline <b>two</b>")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector('#note:text-is("The correction of page 3 is saved.")')
        assert page.get_attribute("#note", "role") == "status"
        assert page.inner_text("#text article:nth-of-type(3) .plain") == "Zeile eins \u20ac\nline <b>two</b>"
        assert page.inner_text("#text article:nth-of-type(3) .state") == "Corrected"
        assert page.inner_text("#text article:nth-of-type(2) .state") == "Blank"
        assert page.get_attribute("#thumbs li:nth-child(3) button", "aria-label") == "Page 3, corrected"
    corrected = [record for record in kept_records(folder) if record["corrections"]]
    assert [record["answers"][-1]["page"] for record in corrected] == [3]
    assert corrected[0]["corrections"]["free"]["text"] == "Zeile eins \u20ac\nline <b>two</b>"
    assert corrected[0]["readings"]["free"]["text"] == before


def test_correction_that_is_refused_keeps_what_was_written(browser: Any, keeping: tuple[ServerProcess, Path]) -> None:
    server, _ = keeping
    with opened(browser, server, refusals=1) as page:
        read_image(page, PNG)
        page.click("#text .correct")
        page.fill("#text textarea", "x" * 70_000)
        page.click('#text .correction button[type="submit"]')
        page.wait_for_selector("#text .correction [role=alert]:visible")
        assert "text_too_long" in page.inner_text("#text .correction [role=alert]")
        assert len(page.input_value("#text textarea")) == 70_000
        page.fill("#text textarea", "short")
        page.click('#text .correction button[type="submit"]')
        page.wait_for_selector('#text .state:text-is("Corrected")')
        assert page.inner_text("#text .plain") == "short"


def test_correction_that_is_not_saved_is_not_lost_by_accident(
    browser: Any, keeping: tuple[ServerProcess, Path]
) -> None:
    server, _ = keeping
    with opened(browser, server) as page:
        asked: list[str] = []
        page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
        read_image(page, PNG)
        page.click("#text .correct")
        page.fill("#text textarea", "ten minutes of typing")
        page.click("#go")
        page.set_input_files("#file", files=[PDF])
        page.close(run_before_unload=True)
        becomes(page, "document.getElementById('name').textContent", "page.png")
        assert page.input_value("#text textarea") == "ten minutes of typing"
        assert asked == ["confirm", "confirm", "beforeunload"]
        page.get_by_role("button", name="Cancel").click()
        page.set_input_files("#file", files=[PDF])
        page.wait_for_selector("#thumbs img")
    assert len(asked) == 3


def test_page_that_may_not_be_kept_is_not_and_cannot_be_corrected(
    browser: Any, keeping: tuple[ServerProcess, Path]
) -> None:
    server, folder = keeping
    before = len(kept_records(folder))
    with opened(browser, server) as page:
        page.uncheck("#keep")
        assert "-H 'X-Deepsynth-No-Store: 1'" in page.text_content("#snippet")
        read_image(page, {**PNG, "buffer": png("private", (640, 400))})
        assert page.query_selector("#text .correct") is None
        page.select_option("#format", "text")
        with page.expect_download():
            page.click("#download")
        page.check("#keep")
        assert "No-Store" not in page.text_content("#snippet")
    assert len(kept_records(folder)) == before


def test_page_is_not_kept_where_the_tab_said_no_before_it_was_loaded_again(
    browser: Any, keeping: tuple[ServerProcess, Path]
) -> None:
    server, folder = keeping
    before = len(kept_records(folder))
    with opened(browser, server) as page:
        page.uncheck("#keep")
        for leave in (page.reload, lambda: (page.goto("about:blank"), page.go_back())):
            leave()
            page.wait_for_selector("#service.ready")
            assert not page.is_checked("#keep")
        read_image(page, {**PNG, "buffer": png("still private", (640, 400))})
    with opened(browser, server) as page:
        assert page.is_checked("#keep")
    assert len(kept_records(folder)) == before


@pytest.mark.parametrize("said", ["off", "nothing"])
def test_page_is_not_kept_by_a_service_that_seemed_to_keep_none(
    said: str, browser: Any, keeping: tuple[ServerProcess, Path]
) -> None:
    """As when the service is restarted with other settings, or is busy ending while the page asks it."""
    server, folder = keeping
    before = len(kept_records(folder))

    def tell(page: Any) -> None:
        answer = {"json": {"status": "ready", "jobs": False, "samples": "off"}} if said == "off" else {"status": 503}
        page.route("**/readyz", lambda route: route.fulfill(**answer))

    with opened(browser, server, before=tell, refusals=said == "nothing") as page:
        page.set_input_files("#file", files=[{**PNG, "buffer": png(f"private, {said}", (640, 400))}])
        page.wait_for_selector("#image")
        assert page.is_hidden("#keep-label")
        assert "No-Store" not in page.text_content("#snippet")
        read(page)
    assert len(kept_records(folder)) == before


def test_keys_of_an_input_method_end_no_correction(browser: Any, keeping: tuple[ServerProcess, Path]) -> None:
    server, _ = keeping
    with opened(browser, server) as page:
        read_image(page, PNG)
        page.click("#text .correct")
        page.fill("#text textarea", "half a word")
        composing = {"key": "Escape", "bubbles": True, "cancelable": True, "isComposing": True}
        page.dispatch_event("#text textarea", "keydown", composing)
        assert page.input_value("#text textarea") == "half a word"
        page.press("#text textarea", "Escape")
        assert page.query_selector("#text textarea") is None


def test_service_without_samples_offers_no_correction(browser: Any, server: ServerProcess) -> None:
    with opened(browser, server) as page:
        read_image(page, PNG)
        assert page.is_hidden("#keep-label")
        assert page.query_selector("#text .correct") is None


def test_only_tasks_that_the_chosen_model_can_do_are_offered(browser: Any, server: ServerProcess) -> None:
    def limited(route: Any) -> None:
        answer = server.get("/v1/models").json()
        for model in answer["data"]:
            model["tasks"] = ["free", "markdown"] if model["id"] == "fake" else ["free", "ocr"]
        route.fulfill(json=answer)

    def offered(page: Any) -> list[str]:
        return page.eval_on_selector_all("#task option", "options => options.map(option => option.value)")

    with opened(browser, server, before=lambda page: page.route("**/v1/models", limited)) as page:
        assert offered(page) == ["free", "markdown"]
        page.select_option("#task", "markdown")
        page.select_option("#model", "invoices")
        assert offered(page) == ["free", "ocr"]
        assert page.input_value("#task") == "free"
        page.select_option("#task", "ocr")
        others = page.eval_on_selector_all("#other option", "options => options.map(option => option.value)")
        assert others == ["", "invoices@1"]


def turned_page() -> bytes:
    image = page_image("", (500, 700))
    draw = ImageDraw.Draw(image)
    for line in range(12):
        draw.text((40, 40 + 50 * line), f"line {line} of an upright page, with words", fill="black", font_size=22)
    return encode(image.rotate(90, expand=True))


def test_turned_image_is_shown_upright_once_it_is_read(browser: Any, server: ServerProcess) -> None:
    data = turned_page()
    answer = server.post("/ocr", files={"file": data}).json()["pages"][0]
    assert (answer["turned_degrees"], answer["width_px"], answer["height_px"]) == (90, 500, 700)
    with opened(browser, server) as page:
        size = "(image => [image.naturalWidth, image.naturalHeight])(document.getElementById('image'))"
        page.set_input_files("#file", files=[{**PNG, "buffer": data}])
        page.wait_for_selector("#image")
        assert page.evaluate(size) == [700, 500]
        read(page)
        becomes(page, size, [500, 700])
        page.wait_for_selector('#boxes[viewBox="0 0 500 700"]')
        assert "turned by 90" in page.inner_text("#text .page")
        # As the file has it: the picture follows what was read.
        page.click("#more")
        page.select_option("[name=orientation]", "as-is")
        read(page)
        becomes(page, size, [700, 500])
        page.wait_for_selector('#boxes[viewBox="0 0 700 500"]')


def test_picture_that_comes_after_the_page_was_read_in_another_turn_is_made_again(
    browser: Any, server: ServerProcess
) -> None:
    held: list[Any] = []

    def hold(route: Any) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    with opened(browser, server, before=lambda page: page.route("**/preview", hold)) as page:
        size = "(image => [image.naturalWidth, image.naturalHeight])(document.getElementById('image'))"
        page.set_input_files("#file", files=[{**PNG, "buffer": turned_page()}])
        page.wait_for_selector("#image")
        read(page)
        page.click("#more")
        page.select_option("[name=orientation]", "as-is")
        read(page)
        (late,) = held
        with page.expect_response("**/preview"):
            late.continue_()
        page.wait_for_selector('#boxes[viewBox="0 0 700 500"]')
        becomes(page, size, [700, 500])


def shown_options(page: Any) -> list[str]:
    return page.eval_on_selector_all(
        "#options [data-option]",
        "all => all.filter(each => each.checkVisibility()).map(each => each.dataset.option)",
    )


# The fields of forms that are sent; Chromium shows no body that has a file in it.
RECORDED = """
    window.sent = [];
    const send = window.fetch;
    window.fetch = (address, options) => {
        const body = options?.body;
        if (body instanceof FormData) sent.push(Object.fromEntries([...body].filter(([name]) => name !== "file")));
        return send(address, options);
    };
"""


def test_options_are_those_that_model_and_task_take_and_are_sent(browser: Any, server: ServerProcess) -> None:
    always = ["orientation", "blank_pages", "confidence", "review_threshold"]
    numbers = ["min_confidence", "min_coverage", "max_new_tokens", "temperature"]
    with opened(browser, server, before=lambda page: page.add_init_script(RECORDED)) as page:
        assert page.is_hidden("#options")
        page.focus("#more")
        page.keyboard.press("Enter")
        assert page.get_attribute("#more", "aria-expanded") == "true"
        assert shown_options(page) == [*always, *numbers]
        page.select_option("#task", "markdown")
        assert shown_options(page) == ["table_format", *always, *numbers, "omit", "figures"]
        page.select_option("#task", "describe")
        assert shown_options(page) == [*always, "max_new_tokens", "temperature"]
        page.select_option("#task", "markdown")
        page.set_input_files("#file", files=[PDF])
        page.wait_for_selector("#options [name=join_pages]:visible")
        page.select_option("[name=table_format]", "html")
        page.check("[name=omit][value=header]")
        page.check("[name=omit][value=page_number]")
        page.check("[name=join_pages]")
        page.fill("[name=temperature]", "0.5")
        page.fill("[name=seed]", "7")
        page.fill("[name=max_new_tokens]", "9")
        page.fill("[name=review_threshold]", "0.75")
        assert page.inner_text("#more") == "Options (7)"
        read(page)
        fields = page.evaluate("window.sent.at(-1)")
        assert fields == {
            "model_id": "fake", "task": "markdown", "table_format": "html", "omit": "header,page_number",
            "join_pages": "true", "temperature": "0.5", "seed": "7", "max_new_tokens": "9", "review_threshold": "0.75",
            "confidence": "word", "stream": "true",
        }  # fmt: skip
        assert page.input_value("#threshold") == "0.75"
        assert "-F omit=header,page_number" in page.text_content("#snippet")
        # A file in a format without a place for them.
        page.select_option("#format", "hocr")
        with page.expect_download() as saving:
            page.click("#download")
        assert saving.value.suggested_filename == "three.hocr"
        page.click("#options-reset")
        assert page.inner_text("#more") == "Options"
        assert "omit" not in page.text_content("#snippet")


def test_field_that_is_not_valid_is_shown(browser: Any, server: ServerProcess) -> None:
    with opened(browser, server) as page:
        page.set_input_files("#file", files=[PNG])
        page.click("#more")
        page.fill("[name=min_coverage]", "7")
        page.click("#more")
        page.click("#go")
        assert page.is_visible("#options")
        assert page.evaluate("document.activeElement.name") == "min_coverage"


def test_figures_are_shown_and_saved_within_the_text(browser: Any, server: ServerProcess, tmp_path: Path) -> None:
    jpeg = base64.b64encode(encode(page_image("figure", (60, 40)), "JPEG")).decode()
    name = "page-1-figure-1.jpeg"
    image = f"data:image/jpeg;base64,{jpeg}"
    figure = {"name": name, "page": 1, "label": "image", "box_px": [1, 1, 9, 9], "image": image}
    text = f"Above\n\n![{name}]({name})\n\n![x](http://other.invalid/x.png)"
    with opened(browser, server, accept_downloads=True) as page:
        answer_with(page, text, whole={"figures": [figure]})
        page.set_input_files("#file", files=[PNG])
        page.select_option("#task", "markdown")
        read(page)
        becomes(page, "document.querySelector('#text img.figure')?.naturalWidth", 60)
        assert page.locator("#text img").count() == 1
        assert "http://other.invalid/x.png" in page.inner_text("#text")
        page.select_option("#format", "markdown")
        with page.expect_download() as saving:
            page.click("#download")
        saving.value.save_as(tmp_path / "saved.md")
    assert f"![{name}]({image})" in (tmp_path / "saved.md").read_text()


def test_print_that_is_not_in_the_text_has_boxes(browser: Any, server: ServerProcess) -> None:
    with opened(browser, server) as page:
        answer_with(page, "half", unread=[[10, 200, 600, 380]], coverage=0.5, warnings=["partly_read"])
        page.set_input_files("#file", files=[PNG])
        read(page)
        assert page.text_content("#boxes rect.unread title") == "Not in the text"
        assert "50 % of the print read" in page.inner_text("#text .page")


def report(pages: int) -> dict[str, Any]:
    """A PDF as the file field takes it."""
    texts = [f"Section {number} of a long report" for number in range(1, pages + 1)]
    return {"name": "long.pdf", "mimeType": "application/pdf", "buffer": make_pdf(texts, size_pt=(300, 400))}


LONG = report(8)


def test_long_document_is_read_in_the_background_page_by_page(browser: Any, background: ServerProcess) -> None:
    with opened(browser, background, refusals=1) as page:
        page.set_input_files("#file", files=[LONG])
        page.wait_for_selector("#thumbs li:nth-child(8)")
        page.click("#go")
        page.click("text=Read it in the background")
        page.wait_for_selector("#progress:visible")
        page.wait_for_selector("#thumbs li:nth-child(1) [data-state=ok]")
        finished(page)
        assert page.is_hidden("#progress")
        assert page.locator("#text .state").all_inner_texts() == ["Read"] * 8
        assert page.inner_text("#facts").startswith("8 pages")
        page.select_option("#format", "searchable-pdf")
        with page.expect_download() as saving:
            page.click("#download")
        assert saving.value.suggested_filename == "long.searchable.pdf"
        page.click("#code summary")
        assert f"{background.url}/jobs/ID/result" in page.text_content("#snippet")
        page.click("text=Python")
        compile(page.text_content("#snippet"), "snippet", "exec")


def test_job_that_is_stopped_is_erased(browser: Any, background: ServerProcess) -> None:
    with opened(browser, background) as page:
        # So long that it cannot be read before the click that stops it.
        page.set_input_files("#file", files=[report(80)])
        page.click("#more")
        page.check("[name=job]")
        page.wait_for_selector("#thumbs img")
        with page.expect_response("**/jobs") as answered:
            page.click("#go")
        job = answered.value.json()["id"]
        page.wait_for_selector('#text .state:text-is("Read") >> nth=0')
        with page.expect_request(lambda request: request.method == "DELETE"):
            page.click("#go")
        finished(page)
        end_s = time.monotonic() + LIMIT_S
        while background.get(f"/jobs/{job}").status_code != 404:
            assert time.monotonic() < end_s
            time.sleep(0.05)


def test_job_is_followed_after_the_page_was_loaded_again(browser: Any, background: ServerProcess) -> None:
    with opened(browser, background) as page:
        page.set_input_files("#file", files=[LONG])
        page.click("#more")
        page.check("[name=job]")
        page.wait_for_selector("#thumbs img")
        with page.expect_response("**/jobs"):
            page.click("#go")
        page.wait_for_selector("#progress:visible")
        page.reload()
        page.wait_for_selector('#name:text-is("long.pdf")')
        page.wait_for_selector("#text[aria-busy=false] .page")
        assert page.locator("#text .state").all_inner_texts() == ["Read"] * 8


def started_job(page: Any, num_pages: int) -> str:
    page.set_input_files("#file", files=[report(num_pages)])
    page.click("#more")
    page.check("[name=job]")
    page.wait_for_selector("#thumbs img")
    with page.expect_response("**/jobs") as answered:
        page.click("#go")
    page.wait_for_selector('#text .state:text-is("Read") >> nth=0')
    return answered.value.json()["id"]


def test_job_that_another_tab_follows_is_not_erased(browser: Any, background: ServerProcess) -> None:
    with opened(browser, background) as page:
        started_job(page, 80)
        # As a browser makes it when a tab is duplicated.
        stored = page.evaluate("JSON.stringify(sessionStorage)")
        other = page.context.new_page()
        other.goto(f"{background.url}/web/icon.svg")
        other.evaluate("stored => Object.assign(sessionStorage, JSON.parse(stored))", stored)
        other.goto(f"{background.url}/")
        other.wait_for_selector('#text .state:text-is("Read") >> nth=0')
        other.click("#go")
        other.wait_for_selector("#text[aria-busy=false] .page")
        finished(page)
        assert page.is_hidden("#problem")
        assert page.locator("#text .state").all_inner_texts() == ["Read"] * 80


def test_another_file_ends_a_job_only_if_the_person_wants_that(browser: Any, background: ServerProcess) -> None:
    with opened(browser, background) as page:
        answers = iter([False, True])
        asked: list[str] = []

        def decide(dialog: Any) -> None:
            asked.append(dialog.message)
            dialog.accept() if next(answers) else dialog.dismiss()

        page.on("dialog", decide)
        started_job(page, 80)
        page.set_input_files("#file", files=[PNG])
        becomes(page, "document.getElementById('name').textContent", "long.pdf")
        with page.expect_request(lambda request: request.method == "DELETE"):
            page.set_input_files("#file", files=[PNG])
        page.wait_for_selector('#name:text-is("page.png")')
    assert len(asked) == 2


@pytest.mark.parametrize("away", ["network", "proxy"])
def test_job_is_followed_while_the_service_is_away(away: str, browser: Any, background: ServerProcess) -> None:
    with opened(browser, background, refusals=3) as page:
        times = iter(range(3))

        def look(route: Any) -> None:
            if next(times, None) is None:
                route.continue_()
            elif away == "network":
                route.abort("connectionrefused")
            else:
                route.fulfill(status=502, body="<html>Bad Gateway</html>", content_type="text/html")

        page.set_input_files("#file", files=[LONG])
        page.click("#more")
        page.check("[name=job]")
        page.wait_for_selector("#thumbs img")
        page.route("**/jobs/job-*", look)
        read(page)
        assert page.locator("#text .state").all_inner_texts() == ["Read"] * 8
        assert page.is_hidden("#problem")


def test_job_of_a_service_that_stays_away_is_found_again(browser: Any, background: ServerProcess) -> None:
    with opened(browser, background, refusals=65) as page:
        page.clock.install()
        page.set_input_files("#file", files=[LONG])
        page.click("#more")
        page.check("[name=job]")
        page.wait_for_selector("#thumbs img")
        page.route("**/jobs/job-*", lambda route: route.abort("connectionrefused"))
        page.click("#go")
        end_s = time.monotonic() + LIMIT_S
        while page.is_hidden("#problem"):
            assert time.monotonic() < end_s
            page.clock.run_for(10_000)
        assert "read on without this page" in page.inner_text("#problem")
        page.unroute("**/jobs/job-*")
        page.clock.resume()
        page.reload()
        page.wait_for_selector('#name:text-is("long.pdf")')
        page.wait_for_selector("#text[aria-busy=false] .page")
        assert page.locator("#text .state").all_inner_texts() == ["Read"] * 8


def test_field_that_the_service_refuses_is_named(browser: Any, server: ServerProcess) -> None:
    with opened(browser, server, refusals=1) as page:
        page.set_input_files("#file", files=[PDF])
        page.wait_for_selector("#thumbs img")
        page.fill("#pages", "first")
        page.click("#go")
        page.wait_for_selector("#problem:visible")
        assert page.inner_text("#problem") == (
            "The value of pages is not valid. Expected: page numbers such as 1-3,7. invalid_field"
        )


def test_page_works_below_a_path_of_a_proxy(browser: Any, server: ServerProcess) -> None:
    with below_a_path(server.url) as url, opened(browser, server, url=url) as page:
        page.set_input_files("#file", [PDF])
        read(page)
        assert page.locator("#text .page").count() == 3
        page.click("#code summary")
        assert f"{url}/ocr" in page.text_content("#snippet")


def test_line_of_a_doubtful_word_is_shown_enlarged_and_lit_on_the_page(browser: Any, server: ServerProcess) -> None:
    # Each line of the page is of one colour, so that what is cut out can be told.
    image = page_image("", (640, 400))
    draw = ImageDraw.Draw(image)
    draw.rectangle((10, 0, 300, 60), fill="red")
    draw.rectangle((10, 200, 300, 260), fill="blue")
    regions = [
        {"label": "text", "box_px": [10, 20, 300, 40], "text": "Total due:"},
        {"label": "text", "box_px": [10, 220, 300, 240], "text": "12,40 due:"},
    ]
    with opened(browser, server) as page:
        answer_with_words(page, "Total due:\n12,40 due:", regions=regions)
        page.set_input_files("#file", files=[{**PNG, "buffer": encode(image)}])
        read(page)
        page.fill("#threshold", "0.86")
        page.keyboard.press("F8")
        for index, colour in ((0, [255, 0, 0]), (1, [0, 0, 255])):
            page.wait_for_selector(f'#boxes rect.lit[data-region="{index}"]')
            page.wait_for_selector("canvas.closeup")
            middle = page.evaluate(
                "(canvas => [...canvas.getContext('2d').getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data])"
                "(document.querySelector('canvas.closeup'))"
            )
            assert middle[:3] == colour
            word, cut = page.locator("mark.doubtful:focus").bounding_box(), page.locator(".closeup").bounding_box()
            assert word["y"] + word["height"] <= cut["y"] <= word["y"] + 2 * word["height"]
            page.keyboard.press("F8")
        page.focus("#threshold")
        assert page.locator("canvas.closeup").count() == 0
        assert page.locator("#boxes rect.lit").count() == 0


def test_page_follows_the_text_that_is_scrolled_to(browser: Any, server: ServerProcess) -> None:
    with opened(browser, server) as page:
        page.set_input_files("#file", files=[report(8)])
        page.wait_for_selector("#thumbs li:nth-child(8) img")
        read(page)
        page.hover("#text")
        page.mouse.wheel(0, 10000)
        page.wait_for_selector("#position:text-is('8 / 8')")
        page.mouse.wheel(0, -10000)
        page.wait_for_selector("#position:text-is('1 / 8')")
        # A page that is chosen has its text at the top.
        page.click("#thumbs li:nth-child(3) button")
        page.wait_for_selector('#position:text-is("3 / 8")')
        top = page.evaluate(
            "document.querySelector('#text .page:nth-child(3)').getBoundingClientRect().top"
            " - document.querySelector('#text').getBoundingClientRect().top"
        )
        assert -2 <= top <= 2


def test_pictures_of_pages_wait_while_pages_are_read(browser: Any, server: ServerProcess) -> None:
    asked: list[Any] = []

    def asks(route: Any) -> None:
        asked.append(route)
        # The second picture is let through when reading has begun.
        if len(asked) != 2:
            route.continue_()

    with opened(browser, server) as page:
        page.route("**/preview", asks)
        # Never answered.
        page.route("**/ocr", lambda route: None)
        with page.expect_request(lambda request: request.url.endswith("/preview") and len(asked) == 1):
            page.set_input_files("#file", files=[report(12)])
        page.wait_for_selector("#image")
        page.click("#go")
        page.wait_for_selector('#go:text-is("Stop")')
        with page.expect_response("**/preview"):
            asked[1].continue_()
        page.wait_for_timeout(1000)
        assert len(asked) == 2
        page.click("#go")
        page.wait_for_selector("#thumbs li:nth-child(12) img")
        assert len(asked) == 12


def test_long_wait_is_seen_to_go_on(browser: Any, server: ServerProcess) -> None:
    with opened(browser, server) as page:
        # Never answered.
        page.route("**/ocr", lambda route: None)
        page.set_input_files("#file", files=[PNG])
        page.wait_for_selector("#image")
        assert page.inner_text("#clock") == ""
        page.click("#go")
        page.wait_for_selector('#clock:text-is("1 s")')
        page.wait_for_selector('#clock:text-is("2 s")')
        # A screen reader is not told every second.
        assert page.get_attribute("#clock", "aria-hidden") == "true"
        assert page.is_visible("#progress")
        assert page.title().startswith("Reading")
        page.click("#go")
        finished(page)
        assert page.inner_text("#clock") == ""
        assert page.is_hidden("#progress")
        assert page.title() == "DeepSynth OCR"


def test_only_controls_that_do_something_are_shown(browser: Any, server: ServerProcess) -> None:
    with opened(browser, server) as page:
        assert page.is_hidden("#pages")
        page.set_input_files("#file", files=[PNG])
        page.wait_for_selector("#image")
        assert page.is_hidden("#pages")
        assert page.is_hidden("#views")
        page.select_option("#task", "markdown")
        assert page.is_visible("#views")
        page.set_input_files("#file", files=[PDF])
        page.wait_for_selector("#pages:visible")


def test_page_says_whether_documents_are_kept(
    browser: Any, server: ServerProcess, keeping: tuple[ServerProcess, Path]
) -> None:
    with opened(browser, server) as page:
        assert "not stored" in page.inner_text("#privacy")
        assert page.is_hidden("#keep-label")
    with opened(browser, keeping[0]) as page:
        assert "keeps pages" in page.inner_text("#privacy")
        assert page.inner_text("#keep-label").strip() == "Keep for training"


def test_place_that_is_clicked_twice_is_enlarged(browser: Any, server: ServerProcess) -> None:
    with opened(browser, server) as page:
        page.set_input_files("#file", files=[{**PNG, "buffer": png(size=(600, 800))}])
        page.wait_for_selector("#image")
        before = page.locator("#sheet").bounding_box()
        stage = page.locator("#stage").bounding_box()
        page.dblclick("#sheet", position={"x": before["width"] * 0.5, "y": before["height"] * 0.75})
        after = page.locator("#sheet").bounding_box()
        assert after["width"] > 1.5 * before["width"]
        # That place is now in the middle.
        assert abs(after["y"] + 0.75 * after["height"] - (stage["y"] + stage["height"] / 2)) < 20
        assert page.get_attribute("#zoom", "aria-pressed") == "true"
        page.click("#zoom")
        assert page.locator("#sheet").bounding_box() == before


# The contrast of each visible text with what is behind it: [ratio, text] of those below the 4.5 of WCAG's level AA.
FAINT = """() => {
    const parsed = (text) => {
        const all = text.match(/[\\d.]+/g).map(Number);
        const scale = text.startsWith("color(") ? 255 : 1;
        return [all[0] * scale, all[1] * scale, all[2] * scale, all[3] ?? 1];
    };
    const over = (top, below) => below.map((value, index) => top[index] * top[3] + value * (1 - top[3])).slice(0, 3);
    const behind = (each) => {
        if (!each) return [255, 255, 255];
        const colour = parsed(getComputedStyle(each).backgroundColor);
        return colour[3] === 1 ? colour.slice(0, 3) : over(colour, behind(each.parentElement));
    };
    const light = (colour) => {
        const linear = (share) => (share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4);
        const [r, g, b] = colour.map((value) => linear(value / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const { parentElement: each, data } = walker.currentNode;
        if (!data.trim() || !each.checkVisibility() || each.closest(":disabled, option")) continue;
        const ground = behind(each);
        const [a, b] = [light(over(parsed(getComputedStyle(each).color), ground)), light(ground)].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) found.push([ratio.toFixed(2), data.trim()]);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_told_from_its_ground(scheme: str, browser: Any, server: ServerProcess) -> None:
    with opened(browser, server, refusals=1, color_scheme=scheme) as page:
        assert page.evaluate(FAINT) == []
        page.set_input_files("#file", files=[{**PNG, "buffer": b"PK\3\4" * 99}])
        page.wait_for_selector("#problem:visible")
        assert page.evaluate(FAINT) == []
        page.click("#more")
        answer_with_words(page, "**Total** due: 12,40\n\ndue:", warnings=["low_accuracy"])
        page.set_input_files("#file", files=[PNG])
        page.select_option("#task", "markdown")
        read(page)
        page.click("#code summary")
        assert page.evaluate(FAINT) == []
        page.select_option("#other", "invoices")
        read(page)
        assert page.evaluate(FAINT) == []
        # The measure itself finds a text that is too faint.
        page.evaluate("document.querySelector('#facts').style.color = '#777'")
        assert len(page.evaluate(FAINT)) == 1


def test_text_that_is_below_the_page_comes_into_sight(browser: Any, server: ServerProcess) -> None:
    with opened(browser, server, width=390, reduced_motion="reduce") as page:
        page.set_input_files("#file", files=[PNG])
        page.wait_for_selector("#image")
        assert page.locator("#text-title").bounding_box()["y"] > 500
        read(page)
        assert 0 <= page.locator("#text-title").bounding_box()["y"] < 400


def test_controls_are_large_enough_for_a_finger(browser: Any, server: ServerProcess) -> None:
    with opened(browser, server, width=390, has_touch=True, is_mobile=True) as page:
        answer_with_words(page, "**Total** due: 12,40\n\ndue:")
        page.set_input_files("#file", files=[PDF])
        page.wait_for_selector("#thumbs img")
        read(page)
        small = page.evaluate(
            "[...document.querySelectorAll('button, select, input:not([type=checkbox], [type=radio], [type=file])')]"
            ".filter((each) => each.checkVisibility() && each.getBoundingClientRect().height < 40)"
            ".map((each) => each.id || each.textContent)"
        )
        assert small == []


def test_nothing_moves_for_those_who_want_that(browser: Any, server: ServerProcess) -> None:
    moving = "document.getAnimations().filter((each) => each.playState === 'running').length"
    for wish, is_moving in (("no-preference", True), ("reduce", False)):
        with opened(browser, server, reduced_motion=wish) as page:
            # Never answered.
            page.route("**/ocr", lambda route: None)
            page.set_input_files("#file", files=[PNG])
            page.wait_for_selector("#image")
            page.click("#go")
            page.wait_for_selector(".lines")
            assert (page.evaluate(moving) > 0) is is_moving
