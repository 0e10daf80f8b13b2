"""Clients as they are on PyPI, against a server of its own: what they send is taken, what they get they can read."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import mistralai.client as mistral
import openai
import pikepdf
import pypdf
import pytest
from azure.ai.documentintelligence import DocumentIntelligenceClient, models
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from mistralai.client.errors import HTTPValidationError, SDKError

from shared.contract.text import cer
from tests.support.chat import data_url, image_part, text_part
from tests.support.nano import needs_nano
from tests.support.pdf import make_pdf
from tests.support.programs import ROOT
from tests.support.server import ServerProcess, form_body, running_server
from tests.support.service import png

pytestmark = pytest.mark.integration

LIMIT = 300_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    settings = {"MAX_UPLOAD_BYTES": str(LIMIT), "MAX_CONCURRENT_REQUESTS": "2", "FAKE_STEP_MS": "1"}
    with running_server(JOB_DIR=str(tmp_path_factory.mktemp("jobs")), **settings) as running:
        yield running


def read(server: ServerProcess, data: bytes, **fields: str) -> str:
    """What `POST /ocr` reads."""
    body, content_type = form_body(data, **fields)
    response = server.post("/ocr", content=body, headers={"content-type": content_type})
    text: str = response.json()["text"]
    return text


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(*parts: dict) -> list:
    return [{"role": "user", "content": list(parts)}]


def test_openai_reads_a_page(server: ServerProcess, client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model="fake", messages=ask(text_part("Free OCR."), image_part(png())), max_completion_tokens=50, temperature=0
    )
    assert completion.choices[0].message.content == read(server, png())
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == "fake"
    usage = completion.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > usage.completion_tokens > 0
    assert usage.prompt_tokens_details.image_tokens > 0
    assert completion.model_extra["warnings"] == []
    assert completion.model_extra["pages"][0]["width_px"] == 320
    # Validated, not only constructed.
    type(completion).model_validate(completion.model_dump(exclude_unset=True))


def test_openai_streams_a_page(server: ServerProcess, client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="fake", messages=ask(image_part(png())), stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    for chunk in chunks:
        type(chunk).model_validate(chunk.model_dump(exclude_unset=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == read(server, png())
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [*[None] * (len(chunks) - 2), "stop"]
    assert chunks[-1].usage.completion_tokens == len(text.split())


def test_openais_stream_helper_puts_the_completion_together(server: ServerProcess, client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="fake", messages=ask(image_part(png()))) as stream:
        for _ in stream:
            pass
        completion = stream.get_final_completion()
    assert completion.choices[0].message.content == read(server, png())


def test_openai_reads_a_document_and_uses_extensions(server: ServerProcess, client: openai.OpenAI) -> None:
    pdf = make_pdf(["one", "two"])
    part = {"type": "file", "file": {"filename": "a.pdf", "file_data": data_url(pdf, "application/pdf")}}
    completion = client.chat.completions.create(
        model="fake", messages=ask(part), extra_body={"task": "markdown", "pages": "2"}
    )
    assert completion.choices[0].message.content == read(server, pdf, task="markdown", pages="2")


def test_openai_gets_logprobs_and_sends_options(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {
        "model": "fake",
        "messages": ask(image_part(png())),
        "logprobs": True,
        "top_logprobs": 3,
        "extra_body": {"task": "free", "orientation": "as-is", "min_coverage": 0.5, "confidence": "word"},
    }
    completion = client.chat.completions.create(**request)
    content = completion.choices[0].logprobs.content
    assert "".join(token.token for token in content) == completion.choices[0].message.content
    assert all(token.top_logprobs[0].logprob == token.logprob <= 0 for token in content)
    assert len(completion.model_extra["pages"][0]["words"]) == len(completion.choices[0].message.content.split())
    with client.chat.completions.stream(**request) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0]
    assert [token.logprob for token in streamed.logprobs.content] == [token.logprob for token in content]


def test_openai_tells_errors_apart(client: openai.OpenAI) -> None:
    def create(**changes: Any) -> None:
        request: dict[str, Any] = {"model": "fake", "messages": ask(image_part(png())), **changes}
        client.chat.completions.create(**request)

    with pytest.raises(openai.NotFoundError) as missing:
        create(model="gpt-5")
    assert (missing.value.code, missing.value.param, missing.value.type) == (
        "model_not_found",
        "model",
        "invalid_request_error",
    )
    with pytest.raises(openai.BadRequestError) as unsupported:
        create(response_format={"type": "json_object"})
    assert (unsupported.value.code, unsupported.value.param) == ("unsupported_parameter", "response_format")
    with pytest.raises(openai.UnprocessableEntityError) as remote:
        create(messages=ask({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}))
    assert remote.value.code == "remote_url_not_allowed"
    with pytest.raises(openai.APIStatusError) as large:
        create(messages=ask(image_part(b"\0" * (LIMIT + 1))))
    assert (large.value.status_code, large.value.code) == (413, "upload_too_large")
    with pytest.raises(openai.UnprocessableEntityError) as invalid:
        create(stream=True, temperature=9)
    assert (invalid.value.code, invalid.value.param) == ("invalid_field", "temperature")


def test_openai_lists_and_finds_models(client: openai.OpenAI) -> None:
    models = list(client.models.list())
    assert [model.id for model in models] == ["fake"]
    for model in models:
        type(model).model_validate(model.model_dump(exclude_unset=True))
    assert client.models.retrieve("fake") == models[0]
    with pytest.raises(openai.NotFoundError, match=r"This model does not exist; .*known: fake") as missing:
        client.models.retrieve("other")
    assert missing.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("base", "path", "advice"),
    [
        ("", "/chat/completions", "The base URL of OpenAI's clients ends with /v1"),
        ("", "/models", "The base URL of OpenAI's clients ends with /v1"),
        ("/v1", "/responses", "Send pages to POST /v1/chat/completions"),
        ("/v1", "/completions", "Send pages to POST /v1/chat/completions"),
        ("/v1", "/files", "Files come inside the request"),
        ("/v1", "/embeddings", "This path does not exist"),
    ],
)
def test_openai_shows_why_a_path_is_not_found(server: ServerProcess, base: str, path: str, advice: str) -> None:
    with (
        openai.OpenAI(base_url=f"{server.url}{base}", api_key="none", max_retries=0) as client,
        pytest.raises(openai.NotFoundError, match=advice) as missing,
    ):
        client.post(path, cast_to=object, body={})
    assert missing.value.code == "not_found"


def test_openai_waits_as_it_is_told_when_the_service_is_full(server: ServerProcess) -> None:
    with running_server(MAX_CONCURRENT_REQUESTS="1", FAKE_STEP_MS="200") as slow:
        options = {"base_url": f"{slow.url}/v1", "api_key": "none"}  # pragma: allowlist secret
        with openai.OpenAI(**options, max_retries=0) as client, openai.OpenAI(**options, max_retries=9) as patient:
            stream = client.chat.completions.create(model="fake", messages=ask(image_part(png())), stream=True)
            next(iter(stream))
            with pytest.raises(openai.RateLimitError) as full:
                client.chat.completions.create(model="fake", messages=ask(image_part(png())))
            assert full.value.code == "queue_full"
            assert int(full.value.response.headers["retry-after"]) >= 1
            completion = patient.chat.completions.create(model="fake", messages=ask(image_part(png())))
            assert completion.choices[0].message.content == read(server, png())
            stream.close()


def test_a_client_that_leaves_its_stream_cancels_the_reading() -> None:
    with (
        running_server(FAKE_STEP_MS="60000") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = client.chat.completions.create(
            model="fake", messages=ask(image_part(png())), stream=True, extra_headers={"connection": "close"}
        )
        next(iter(stream))
        server.wait_metric("deepsynth_sequences_running", 1)
        stream.close()
        server.wait_metric('deepsynth_requests_total{code="client_disconnect",outcome="client_disconnect"}', 1)
        server.wait_metric("deepsynth_sequences_running", 0)


async def test_openais_asynchronous_client_streams(server: ServerProcess) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(model="fake", messages=ask(image_part(png())), stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == read(server, png())


@pytest.fixture
def ocr(server: ServerProcess) -> Iterator[mistral.Mistral]:
    with mistral.Mistral(api_key="none", server_url=server.url) as client:
        yield client


def test_mistral_reads_a_document(server: ServerProcess, ocr: mistral.Mistral) -> None:
    pdf = make_pdf(["one", "two", "three"])
    document = {"type": "document_url", "document_url": data_url(pdf, "application/pdf")}
    answer = ocr.ocr.process(
        model="fake", document=document, pages=[0, 2], confidence_scores_granularity="page", include_image_base64=True
    )
    assert [page.index for page in answer.pages] == [0, 2]
    assert "\n\n".join(page.markdown for page in answer.pages) == read(server, pdf, task="markdown", pages="1,3")
    page = answer.pages[0]
    assert (page.dimensions.dpi, page.dimensions.width, page.dimensions.height) == (150, 417, 209)
    assert page.confidence_scores.average_page_confidence_score == 0.875
    assert [type(block).__name__ for block in page.blocks] == ["OCRTextBlock"]
    assert page.blocks[0].content == page.markdown
    assert (answer.model, answer.usage_info.pages_processed, answer.usage_info.doc_size_bytes) == ("fake", 2, len(pdf))


def test_mistral_lists_and_finds_models(ocr: mistral.Mistral) -> None:
    (listed,) = ocr.models.list().data or []
    found = ocr.models.retrieve(model_id="fake")
    assert (listed.id, listed.type, found.id) == ("fake", "base", "fake")
    can = listed.capabilities
    assert (can.ocr, can.vision, can.function_calling) == (True, True, False)


def test_mistral_is_told_of_a_v1_too_many(server: ServerProcess) -> None:
    with (
        mistral.Mistral(api_key="none", server_url=f"{server.url}/v1") as client,
        pytest.raises(SDKError, match="has no /v1 at its end"),
    ):
        client.ocr.process(model="fake", document={"type": "image_url", "image_url": data_url(png())})


def test_mistral_reads_an_image(server: ServerProcess, ocr: mistral.Mistral) -> None:
    answer = ocr.ocr.process(model="fake", document={"type": "image_url", "image_url": data_url(png())}, pages="0")
    assert answer.pages[0].markdown == read(server, png(), task="markdown")
    assert (answer.pages[0].dimensions.width, answer.pages[0].dimensions.height) == (320, 200)


def test_mistral_gets_tables_headers_and_footers_apart(ocr: mistral.Mistral) -> None:
    document = {"type": "image_url", "image_url": data_url(png())}
    options = {"table_format": "html", "extract_header": True, "extract_footer": True, "include_blocks": True}
    page = ocr.ocr.process(model="fake", document=document, **options).pages[0]
    assert (page.tables, page.header, page.footer) == ([], None, None)
    assert page.markdown
    assert [block.type for block in page.blocks] == ["text"]


def test_mistral_shows_which_page_was_not_read(ocr: mistral.Mistral) -> None:
    with pikepdf.open(io.BytesIO(make_pdf(["one", "two", "three"]))) as pdf:
        pdf.pages[1].MediaBox = pikepdf.Array([0, 0, 3000, 2])
        stream = io.BytesIO()
        pdf.save(stream)
    document = {"type": "document_url", "document_url": data_url(stream.getvalue(), "application/pdf")}
    answer = ocr.ocr.process(model="fake", document=document)
    assert [page.index for page in answer.pages] == [0, 1, 2]
    assert answer.pages[1].markdown == "<!-- page 2: failed (extreme_aspect_ratio) -->"
    (missing,) = json.loads(answer.document_annotation)["pages_not_read"]
    assert (missing["index"], missing["status"], missing["code"]) == (1, "failed", "extreme_aspect_ratio")
    whole = ocr.ocr.process(model="fake", document=document, pages=[0, 2])
    assert whole.document_annotation is None


def test_mistral_tells_errors_apart(ocr: mistral.Mistral) -> None:
    document = {"type": "image_url", "image_url": data_url(png())}
    with pytest.raises(HTTPValidationError) as remote:
        ocr.ocr.process(model="fake", document={"type": "image_url", "image_url": "https://example.com/a.png"})
    assert remote.value.data.detail[0].type == "remote_url_not_allowed"
    assert remote.value.data.detail[0].loc == ["body", "document", "image_url"]
    with pytest.raises(SDKError) as missing:
        ocr.ocr.process(model="mistral-ocr-latest", document=document)
    assert missing.value.status_code == 404
    assert "model_not_found" in missing.value.body
    with pytest.raises(SDKError) as unsupported:
        ocr.ocr.process(model="fake", document=document, document_annotation_prompt="What is it?")
    assert unsupported.value.status_code == 400
    assert "document_annotation_prompt" in unsupported.value.body


def mistral_message(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "Free OCR."}, *parts]}]


def pdf_part(pdf: bytes) -> dict[str, Any]:
    url = data_url(pdf, "application/pdf")
    return {"type": "document_url", "document_url": url, "document_name": "report.pdf"}


def test_mistrals_chat_reads_a_document(server: ServerProcess, ocr: mistral.Mistral) -> None:
    pdf = make_pdf(["one", "two"])
    image = {"type": "image_url", "image_url": data_url(png())}
    for parts, expected in (([pdf_part(pdf)], read(server, pdf)), ([image], read(server, png()))):
        answer = ocr.chat.complete(model="fake", messages=mistral_message(*parts))
        assert answer.choices[0].message.content == expected
        assert (answer.choices[0].finish_reason, answer.model) == ("stop", "fake")
        chunks = ocr.chat.stream(model="fake", messages=mistral_message(*parts))
        assert "".join(chunk.data.choices[0].delta.content or "" for chunk in chunks) == expected


def test_mistrals_seed_is_the_seed(server: ServerProcess, ocr: mistral.Mistral) -> None:
    fields = {"temperature": 1.5}
    expected = read(server, png(), temperature="1.5", seed="7")
    message = mistral_message({"type": "image_url", "image_url": data_url(png())})
    answers = [ocr.chat.complete(model="fake", messages=message, random_seed=seed, **fields) for seed in (7, 8)]
    assert [answer.choices[0].message.content == expected for answer in answers] == [True, False]


def test_mistrals_chat_refuses_what_it_cannot_do(ocr: mistral.Mistral) -> None:
    pages = [pdf_part(make_pdf(["one"]))]
    refused: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
        ([{"type": "document_url", "document_url": "https://example.com/a.pdf"}], {}, "remote_url_not_allowed"),
        ([{"type": "file", "file_id": "4d0d3b8c-6a64-4b8e-9f2f-0d1f2f0c3c55"}], {}, "messages.0.content.1.file_id"),
        (pages, {"safe_prompt": True}, "safe_prompt"),
        (pages, {"prompt_mode": "reasoning"}, "prompt_mode"),
    ]
    for parts, options, said in refused:
        with pytest.raises((SDKError, HTTPValidationError)) as error:
            ocr.chat.complete(model="fake", messages=mistral_message(*parts), **options)
        assert said in error.value.body
    assert ocr.chat.complete(model="fake", messages=mistral_message(*pages), safe_prompt=False).choices


@pytest.fixture
def azure(server: ServerProcess) -> Iterator[DocumentIntelligenceClient]:
    with DocumentIntelligenceClient(server.url, AzureKeyCredential("none"), polling_interval=0.1) as client:
        yield client


def test_azure_reads_as_paperless_asks_it(server: ServerProcess, azure: DocumentIntelligenceClient) -> None:
    pdf = make_pdf(["one", "two", "three"])
    poller = azure.begin_analyze_document(
        model_id="prebuilt-read",
        body=models.AnalyzeDocumentRequest(bytes_source=pdf),
        output_content_format=models.DocumentContentFormat.TEXT,
        output=[models.AnalyzeOutputOption.PDF],
        content_type="application/json",
    )
    poller.wait()
    result_id = poller.details["operation_id"]
    result = poller.result()
    assert result.content == read(server, pdf)
    assert [page.page_number for page in result.pages] == [1, 2, 3]
    assert (result.model_id, result.content_format, result.warnings) == ("fake", "text", [])
    for page in result.pages:
        assert (page.width, page.height, page.unit) == (417, 209, "pixel")
        for word in page.words:
            assert result.content[word.span.offset : word.span.offset + word.span.length] == word.content
            left, top, right, _, _, bottom, *_ = word.polygon
            assert 0 <= left < right <= page.width
            assert 0 <= top < bottom <= page.height
            assert 0 < word.confidence <= 1
        (span,) = page.spans
        page_text = result.content[span.offset : span.offset + span.length]
        assert " ".join(word.content for word in page.words) == " ".join(page_text.split())
        assert " ".join(line.content for line in page.lines) == " ".join(page_text.split())
    searchable = b"".join(azure.get_analyze_result_pdf(model_id="prebuilt-read", result_id=result_id))
    texts = [page.extract_text() for page in pypdf.PdfReader(io.BytesIO(searchable)).pages]
    # These pages have their text already.
    assert [text.strip() for text in texts] == ["one", "two", "three"]


def test_azure_reads_a_body_as_markdown_with_a_named_model(
    server: ServerProcess, azure: DocumentIntelligenceClient
) -> None:
    pdf = make_pdf(["one", "two", "three"])
    poller = azure.begin_analyze_document(
        "fake",
        io.BytesIO(pdf),
        pages="2-3",
        output_content_format="markdown",
        content_type="application/octet-stream",
    )
    result = poller.result()
    assert result.content == read(server, pdf, task="markdown", pages="2-3")
    assert ([page.page_number for page in result.pages], result.content_format) == ([2, 3], "markdown")


def test_azure_gets_a_searchable_image_and_erases_it(azure: DocumentIntelligenceClient) -> None:
    poller = azure.begin_analyze_document("prebuilt-layout", models.AnalyzeDocumentRequest(bytes_source=png()))
    words = [word.content for word in poller.result().pages[0].words]
    result_id = poller.details["operation_id"]
    searchable = b"".join(azure.get_analyze_result_pdf("prebuilt-layout", result_id))
    (page,) = pypdf.PdfReader(io.BytesIO(searchable)).pages
    assert page.extract_text().split() == words
    assert azure.delete_analyze_result("prebuilt-layout", result_id) is None
    with pytest.raises(ResourceNotFoundError, match="job_not_found"):
        b"".join(azure.get_analyze_result_pdf("prebuilt-layout", result_id))


def test_azure_fails_where_a_page_was_not_read(server: ServerProcess, azure: DocumentIntelligenceClient) -> None:
    with pikepdf.open(io.BytesIO(make_pdf(["one", "two", "three"]))) as pdf:
        pdf.pages[1].MediaBox = pikepdf.Array([0, 0, 3000, 2])
        stream = io.BytesIO()
        pdf.save(stream)
    poller = azure.begin_analyze_document(
        "prebuilt-read", io.BytesIO(stream.getvalue()), content_type="application/octet-stream"
    )
    with pytest.raises(HttpResponseError, match=r"extreme_aspect_ratio.*Page 2"):
        poller.result()
    url = f"{server.url}/jobs/{poller.details['operation_id']}/result"
    job = httpx.get(url, headers={"x-api-key": "none"}).json()
    assert [page["status"] for page in job["pages"]] == ["ok", "failed", "ok"]


@pytest.mark.parametrize(("proto", "scheme"), [("https", "https"), ("http", "http"), ("file", "http"), (None, "http")])
def test_azure_is_sent_back_through_the_proxy(server: ServerProcess, proto: str | None, scheme: str) -> None:
    headers = {"host": "ocr.example.org", **({} if proto is None else {"x-forwarded-proto": proto})}
    path = "/documentintelligence/documentModels/fake:analyze"
    response = server.post(f"{path}", content=png(), headers=headers)
    assert response.status_code == 202
    assert response.headers["retry-after"] == "1"
    base = re.escape(f"{scheme}://ocr.example.org/documentintelligence/documentModels/fake/analyzeResults/job-")
    assert re.fullmatch(rf"{base}\w+\?api-version=.+", response.headers["operation-location"])


@pytest.mark.parametrize(
    ("model", "body", "options", "code"),
    [
        ("prebuilt-read", models.AnalyzeDocumentRequest(url_source="https://example.com/a.png"), {}, "remote_url"),
        ("prebuilt-read", models.AnalyzeDocumentRequest(), {}, "base64Source"),
        ("prebuilt-read", models.AnalyzeDocumentRequest(bytes_source=b"no image"), {}, "unsupported_format"),
        ("prebuilt-invoice", models.AnalyzeDocumentRequest(bytes_source=png()), {}, "model_not_found"),
        ("prebuilt-read", models.AnalyzeDocumentRequest(bytes_source=png()), {"features": ["barcodes"]}, "features"),
        ("prebuilt-read", models.AnalyzeDocumentRequest(bytes_source=png()), {"output": ["figures"]}, "output"),
        ("prebuilt-read", models.AnalyzeDocumentRequest(bytes_source=png()), {"pages": "0"}, "pages"),
        ("prebuilt-read", models.AnalyzeDocumentRequest(bytes_source=png()), {"params": {"page": "1"}}, "pages"),
        (
            "prebuilt-read",
            models.AnalyzeDocumentRequest(bytes_source=png()),
            {"string_index_type": "utf16CodeUnit"},
            "unsupported_parameter",
        ),
    ],
)
def test_azure_tells_errors_apart(
    azure: DocumentIntelligenceClient, model: str, body: models.AnalyzeDocumentRequest, options: dict, code: str
) -> None:
    with pytest.raises(HttpResponseError, match=code):
        azure.begin_analyze_document(model, body, **options)


@needs_nano
def test_examples_of_the_documentation_run_and_print_the_text(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 4
    truth = (ROOT / "docs" / "samples" / "sample-block.txt").read_text(encoding="utf-8")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    with running_server(ENGINE="native", JOB_DIR=str(tmp_path / "jobs")) as server:
        for example in examples:
            program = example.replace("http://127.0.0.1:8000", server.url)
            command = [sys.executable, "-W", "error", "-c", program]
            ended = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
            assert (ended.returncode, ended.stderr) == (0, "")
            assert cer(truth, ended.stdout.removesuffix("\n")) < 0.05
    assert (tmp_path / "searchable.pdf").read_bytes().startswith(b"%PDF")


REASON = "install the extra clients, in an environment of its own"


def test_langchain_reads_a_page_and_streams_it(server: ServerProcess) -> None:
    langchain = pytest.importorskip("langchain_openai", reason=REASON)
    model = langchain.ChatOpenAI(model="fake", base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    messages = [
        ("system", "You read pages."),
        ("human", [text_part("Read this page"), image_part(png())]),
    ]
    answer = model.invoke(messages)
    assert answer.content == read(server, png())
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata["output_tokens"] == len(answer.content.split())
    assert "".join(chunk.content for chunk in model.stream(messages)) == answer.content


def test_langchains_own_blocks_are_read(server: ServerProcess) -> None:
    langchain = pytest.importorskip("langchain_openai", reason=REASON)
    from langchain_core.messages import HumanMessage

    model = langchain.ChatOpenAI(model="fake", base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    pdf = make_pdf(["one", "two"])
    encoded = data_url(pdf).partition(",")[2]
    blocks = [
        {"type": "text", "text": "Convert the document to markdown."},
        {"type": "file", "base64": encoded, "mime_type": "application/pdf", "filename": "a.pdf"},
        {"type": "image", "base64": data_url(png()).partition(",")[2], "mime_type": "image/png"},
    ]
    answer = model.invoke([HumanMessage(content=blocks)])
    assert answer.content == f"{read(server, pdf, task='markdown')}\n\n{read(server, png(), task='markdown')}"


def test_llama_index_reads_a_page_and_streams_it(server: ServerProcess) -> None:
    openai_like = pytest.importorskip("llama_index.llms.openai_like", reason=REASON)
    from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock

    # It samples at 0.1 unless told otherwise.
    options = {"is_chat_model": True, "max_retries": 0, "temperature": 0}
    model = openai_like.OpenAILike(model="fake", api_base=f"{server.url}/v1", api_key="none", **options)
    blocks = [TextBlock(text="Free OCR."), ImageBlock(image=png(), image_mimetype="image/png")]
    messages = [ChatMessage(role="user", blocks=blocks)]
    assert model.chat(messages).message.content == read(server, png())
    assert "".join(part.delta or "" for part in model.stream_chat(messages)) == read(server, png())
