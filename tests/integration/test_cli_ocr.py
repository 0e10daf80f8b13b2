"""`deepsynth ocr` with many files, folders, standard input, an output folder and a running service."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pypdf import PdfReader, PdfWriter

from service.__main__ import main
from service.cli.output import EXIT_OUTPUT_FAILED, EXIT_PIPE_CLOSED
from shared.contract.text import cer
from tests.support.command import run_here
from tests.support.nano import needs_nano
from tests.support.pdf import make_pdf
from tests.support.programs import ROOT, free_port, read_terminal, take_interrupts
from tests.support.server import ServerProcess, environment, running_server
from tests.support.service import png

pytestmark = pytest.mark.integration

OCR = [sys.executable, "-m", "service", "ocr"]
TWO_PAGES = make_pdf(["first", "second"])
LARGEST_CER = 0.05
BROKEN = b"\x89PNG\r\n\x1a\n broken"


def chosen(**settings: str) -> dict[str, str]:
    return environment(**{"ENGINE": "fake", "IMAGE_WORKERS": "1", "FAKE_STEP_MS": "0", **settings})


def call(
    *arguments: str | Path, folder: Path, given: bytes | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    words = list(map(str, arguments))
    if env is None:
        return run_here(["ocr", *words], folder, chosen(), given or b"")
    return subprocess.run([*OCR, *words], cwd=folder, env=env, check=False, capture_output=True, timeout=180)


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder of pages: a PDF next to an image of the same name, subfolders, and what is no page."""
    folder = tmp_path / "scans"
    (folder / "may" / "deep").mkdir(parents=True)
    (folder / "may" / "deep" / "third.JPG").write_bytes(png("third"))
    (folder / "first.png").write_bytes(png("first"))
    (folder / "first.pdf").write_bytes(TWO_PAGES)
    (folder / "may" / "second.png").write_bytes(png("second"))
    (folder / "notes.txt").write_text("no page")
    (folder / "._first.png").write_bytes(b"what a Mac leaves")
    return folder


def test_folder_is_written_as_a_mirror_and_only_what_changed_is_read_again(scans: Path) -> None:
    command = ["scans", "--out", "scans/out"]
    first = call(*command, folder=scans.parent)
    assert (first.returncode, first.stdout) == (0, b"")
    left_out = "Not read, as their format is not known: 1 (.txt 1)."
    assert first.stderr.decode().splitlines()[-2:] == ["Files written to scans/out: 4.", left_out]
    written = ["first.pdf.txt", "first.png.txt", "may/deep/third.txt", "may/second.txt"]
    assert tree(scans / "out") == written
    assert (scans / "out" / "may" / "second.txt").read_bytes() == call(
        "scans/may/second.png", folder=scans.parent
    ).stdout

    (scans / "out" / "first.png.txt").write_text("mended by hand")
    changed = scans / "may" / "second.png"
    changed.write_bytes(png("another"))
    os.utime(changed, (time.time() + 5, time.time() + 5))
    again = call(*command, folder=scans.parent)
    assert again.stderr.decode().splitlines()[-2:] == [
        "Files written to scans/out: 1; skipped, as they are up to date: 3.",
        left_out,
    ]
    assert (scans / "out" / "first.png.txt").read_text() == "mended by hand"

    call(*command, "--overwrite", folder=scans.parent)
    assert (scans / "out" / "first.png.txt").read_text() != "mended by hand"
    assert tree(scans / "out") == written


def test_nothing_to_do_starts_no_engine(scans: Path) -> None:
    call("scans", "--out", "out", folder=scans.parent)
    without_model = environment(MODEL="/does/not/exist")
    again = call("scans", "--out", "out", folder=scans.parent, env=without_model)
    assert (again.returncode, b"up to date: 4" in again.stderr) == (0, True)
    assert call("scans", "--out", "out", "--overwrite", folder=scans.parent, env=without_model).returncode != 0


def test_failures_are_summed_up_and_read_again_next_time(scans: Path) -> None:
    (scans / "bad.png").write_bytes(BROKEN)
    ended = call("scans", "nowhere.png", "none*.png", "--out", "out", folder=scans.parent)
    assert ended.returncode == 1
    lines = ended.stderr.decode().splitlines()
    assert set(lines[lines.index("Failed:") + 1 :]) == {
        "  scans/bad.png: undecodable_file",
        "  nowhere.png: cannot_open",
        "  none*.png: not_found",
    }
    assert "Files written to out: 4." in lines
    (scans / "bad.png").write_bytes(png())
    again = call("scans", "--out", "out", folder=scans.parent)
    assert (again.returncode, b"Files written to out: 1; skipped" in again.stderr) == (0, True)


def test_document_with_a_failed_page_is_marked_and_read_again(tmp_path: Path, server: ServerProcess) -> None:
    document = PdfWriter(io.BytesIO(make_pdf(["a page"])))
    document.add_blank_page(width=2000, height=4)
    document.write(tmp_path / "two.pdf")
    document.close()
    for where in ([], ["--url", server.url]):
        ended = call("two.pdf", "--format", "json", "--out", "out", *where, folder=tmp_path)
        assert ended.returncode == 1
        assert "two.pdf: page 2: " in ended.stderr.decode()
        assert tree(tmp_path / "out") == ["two.partial.json"]
    told = call("two.pdf", "-o", "out", "--url", server.url, folder=tmp_path).stderr.decode()
    assert "two.pdf: page 2: " in told
    assert "(partial)" not in told
    (tmp_path / "two.pdf").write_bytes(TWO_PAGES)
    assert call("two.pdf", "--format", "json", "--out", "out", folder=tmp_path).returncode == 0
    assert tree(tmp_path / "out") == ["two.json", "two.partial.txt"]


def test_page_without_text_that_can_be_trusted_is_told(tmp_path: Path) -> None:
    (tmp_path / "page.png").write_bytes(png("one word"))
    ended = call("page.png", "--min-confidence", "1", folder=tmp_path)
    assert (ended.returncode, ended.stdout) == (0, b"\n")
    assert ended.stderr.decode().startswith("page.png: page 1: No text that can be trusted")


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("taken", EXIT_OUTPUT_FAILED, b"is a file"),
        ("taken/below", EXIT_OUTPUT_FAILED, b"is a file"),
        ("page.txt", 2, b"--out takes a folder"),
        ("page.searchable.PDF", 2, b"--out takes a folder"),
    ],
)
def test_file_where_a_folder_belongs_is_refused_before_anything_is_read(
    tmp_path: Path, name: str, status: int, says: bytes
) -> None:
    (tmp_path / "page.png").write_bytes(png())
    (tmp_path / "taken").write_bytes(b"kept")
    ended = call("page.png", "--out", name, folder=tmp_path)
    assert (ended.returncode, says in ended.stderr) == (status, True)
    assert tree(tmp_path) == ["page.png", "taken"]
    (tmp_path / "a.txt").mkdir()
    assert call("page.png", "--out", "a.txt", folder=tmp_path).returncode == 0


def test_what_is_doubtful_of_a_page_is_told_in_every_format(tmp_path: Path, server: ServerProcess) -> None:
    (tmp_path / "page.png").write_bytes(png("many words of which few are read"))
    for where in ([], ["--url", server.url]):
        for into in ([], ["--out", "out", "--overwrite"], ["--format", "hocr"]):
            ended = call("page.png", "--max-new-tokens", "2", "--min-coverage", "1", *into, *where, folder=tmp_path)
            told = ended.stderr.decode()
            assert "page.png: page 1: A part of its print was not read" in told, (where, into)
            assert "page.png: page 1: Its text was cut at the maximum of tokens." in told, (where, into)


def test_words_are_reviewed_here_and_with_a_service(scans: Path, server: ServerProcess) -> None:
    (scans / "first.png").write_bytes(png())
    command = ["scans/first.png", "--json", "--confidence", "word", "--review-threshold", "0.5"]
    found = [
        json.loads(call(*command, *where, folder=scans.parent).stdout)["pages"][0]
        for where in ([], ["--url", server.url])
    ]
    assert found[0]["words"] == found[1]["words"] != []
    assert [each["doubtful_words"] for each in found] == [
        [word for word in each["words"] if word["confidence"] < 0.5] for each in found
    ]
    for where in ([], ["--url", server.url]):
        alto = call("scans/first.png", "--format", "alto", *where, folder=scans.parent).stdout.decode()
        assert alto.count(" WC=") == len(found[0]["words"])


def test_patterns_and_standard_input(scans: Path) -> None:
    ended = call("scans/**/*.[pJ][nP]*", "--out", "out", folder=scans.parent)
    assert ended.returncode == 0
    assert tree(scans.parent / "out") == ["first.txt", "may/deep/third.txt", "may/second.txt"]
    piped = call("-", folder=scans.parent, given=(scans / "first.png").read_bytes())
    assert piped.stdout == (scans.parent / "out" / "first.txt").read_bytes()
    made = call("-", "--format", "searchable-pdf", folder=scans.parent, given=(scans / "first.png").read_bytes())
    assert PdfReader(io.BytesIO(made.stdout)).pages[0].extract_text().split() == piped.stdout.decode().split()
    assert json.loads(call("-", "--json", folder=scans.parent, given=b"").stdout)["error"]["code"] == "empty_file"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["https://host/a.png"], "https://host/a.png is an address; download it first"),
        ([""], "a file's name is empty"),
        (["scans", "--format", "alto"], "--format prints one file; to write several, add --out FOLDER"),
        (["scans/first.png", "scans/may/../first.png", "more/first.png", "--out", "o"], "would both be written to"),
        (["scans", "--json", "--out", "o"], "--json prints"),
        (["scans", "--overwrite"], "--overwrite goes with --out"),
        (["scans", "--review-threshold", "0.5"], "--review-threshold goes with --json"),
        (["scans", "--json", "--review-threshold", "2"], "invalid number from 0 to 1 value: '2'"),
        (["scans", "--confidence", "word", "--format", "html", "--out", "o"], "--confidence goes with --json"),
        (["scans", "--jobs", "0"], "--jobs: invalid number from 1 value: '0'"),
        (["scans", "--url", "host:80"], "--url takes an address such as"),
    ],
)
def test_what_does_not_fit_together_is_said_before_anything_is_read(
    scans: Path, words: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(scans.parent)
    with pytest.raises(SystemExit) as ended:
        main(["ocr", *words])
    output, errors = capsys.readouterr()
    assert (ended.value.code, output) == (2, "")
    assert complaint in errors.splitlines()[-1]


def test_option_that_the_model_does_not_have_ends_the_command_in_its_own_words(scans: Path) -> None:
    ended = call("scans", "--model-id", "invoices", folder=scans.parent)
    assert (ended.returncode, ended.stdout) == (2, b"")
    (line,) = ended.stderr.decode().splitlines()
    assert line.startswith("deepsynth: --model-id: This model does not exist; known: ")


def test_output_that_cannot_be_written_is_one_line_with_its_own_status(scans: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [*OCR, "scans"],
            cwd=scans.parent,
            env=chosen(),
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=240,
        )
    assert (ended.returncode, ended.stderr.decode()) == (
        EXIT_OUTPUT_FAILED,
        "deepsynth: standard output: No space left on device. Files printed: 0 of 4.\n",
    )
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *OCR, "scans/first.png"],
        cwd=scans.parent, env=chosen(), check=False, stderr=subprocess.PIPE, timeout=240,
    )  # fmt: skip
    assert (closed.returncode, closed.stderr.decode().count("\n")) == (EXIT_OUTPUT_FAILED, 1)
    # A folder where the text is to go, since the superuser may write everywhere else.
    (scans.parent / "out" / "first.txt").mkdir(parents=True)
    taken = call("scans/first.png", "--out", "out", folder=scans.parent)
    assert (taken.returncode, taken.stderr.decode().count("\n")) == (EXIT_OUTPUT_FAILED, 1)


def test_reader_of_a_pipe_that_goes_away_is_one_line(scans: Path) -> None:
    process = subprocess.Popen(
        [*OCR, "--json", "scans"], cwd=scans.parent, env=chosen(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr as stream:
        errors = stream.read().decode()
    assert process.wait(120) == EXIT_PIPE_CLOSED
    assert errors == "deepsynth: the reader of the output has closed it. Files printed: 0 of 4.\n"


def test_character_outside_the_encoding_loses_nothing(scans: Path) -> None:
    (scans / "first.png").rename(scans / "“first”.png")
    plain = call("scans/“first”.png", "scans/may", folder=scans.parent, env={**chosen(), "PYTHONIOENCODING": "ascii"})
    assert (plain.returncode, plain.stdout.count(b"== ")) == (0, 3)
    assert b"\\u201cfirst\\u201d.png" in plain.stdout
    lines = call("scans/“first”.png", "--json", folder=scans.parent, env={**chosen(), "PYTHONIOENCODING": "latin-1"})
    assert json.loads(lines.stdout)["file"] == "scans/“first”.png"


def test_progress_bar_is_shown_on_a_terminal(scans: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 90))
    command = [*OCR, "scans", "--out", "out"]
    ended = subprocess.run(command, cwd=scans.parent, env=chosen(), check=False, stderr=theirs, timeout=240)
    os.close(theirs)
    shown = read_terminal(ours)
    os.close(ours)
    assert ended.returncode == 0
    assert "0/4 [" in shown
    assert "\rFiles written to out: 4.\r\n" in shown


def test_terminal_says_what_is_waited_for_and_is_clean_at_the_end(scans: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 90))
    command = [*OCR, "scans/first.png", "--blank-pages", "read"]
    ended = subprocess.run(
        command, cwd=scans.parent, env=chosen(), check=False, stdout=subprocess.PIPE, stderr=theirs, timeout=240
    )
    os.close(theirs)
    shown = read_terminal(ours)
    os.close(ours)
    assert (ended.returncode, shown) == (0, "Loading the model ...\r\x1b[KReading ...\r\x1b[K")
    assert call("scans/first.png", "--blank-pages", "read", folder=scans.parent).stderr == b""


def test_interrupted_writing_keeps_what_is_done_and_goes_on(scans: Path) -> None:
    (scans / "aa.png").write_bytes(png("one"))
    slow = chosen(FAKE_STEP_MS="150", OCR_BATCH_SIZE="1")
    command = [*OCR, "scans", "--out", "out", "--jobs", "1"]
    process = subprocess.Popen(
        command,
        cwd=scans.parent,
        env=slow,
        stderr=subprocess.PIPE,
        preexec_fn=take_interrupts,  # noqa: PLW1509 -- it only sets a signal
    )
    end_s = time.monotonic() + 150
    while not tree(scans.parent / "out"):
        assert time.monotonic() < end_s
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    done = tree(scans.parent / "out")
    assert process.returncode == 130
    assert f"\n{errors.decode()}".endswith(
        f"\nInterrupted. Files done: {len(done)} of 5; the same command goes on from there.\n"
    )
    again = call("scans", "--out", "out", folder=scans.parent)
    assert f"written to out: {5 - len(done)}; skipped, as they are up to date: {len(done)}." in again.stderr.decode()


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """With room for one document, so that most are sent again after Retry-After."""
    with running_server(MAX_CONCURRENT_REQUESTS="1", OCR_BATCH_SIZE="1", FAKE_STEP_MS="20") as running:
        yield running


def test_running_service_reads_the_same_and_is_asked_again_when_it_is_full(scans: Path, server: ServerProcess) -> None:
    (scans / "bad.png").write_bytes(BROKEN)
    here = call("scans", "--out", "here", "--format", "alto", folder=scans.parent)
    there = call("scans", "--out", "there", "--format", "alto", "--url", server.url, folder=scans.parent)
    told = [sorted(each.stderr.decode().replace("there", "here").splitlines()) for each in (here, there)]
    assert (there.returncode, told[1]) == (1, told[0])
    assert tree(scans.parent / "there") == tree(scans.parent / "here")
    assert len(tree(scans.parent / "there")) == 4
    assert server.metric('deepsynth_requests_total{code="queue_full",outcome="rejected"}')
    texts = [call("scans/first.pdf", *where, folder=scans.parent).stdout for where in ([], ["--url", server.url + "/"])]
    assert texts[0] == texts[1]


def test_running_service_says_which_option_is_wrong(scans: Path, server: ServerProcess) -> None:
    ended = call("scans", "--model-id", "invoices", "--url", server.url, folder=scans.parent)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert ended.stderr.decode().startswith("deepsynth: --model-id: This model does not exist")


def test_no_service_there_is_said_once(scans: Path) -> None:
    url = f"http://secret:word@127.0.0.1:{free_port()}"  # pragma: allowlist secret
    ended = call("scans", "--url", url, folder=scans.parent)
    (line,) = ended.stderr.decode().splitlines()
    assert ended.returncode == 69
    assert line.endswith("ConnectError; is a service running there?")
    assert "word" not in line


@needs_nano
def test_nano_reads_a_page_into_a_searchable_file(tmp_path: Path) -> None:
    sample = ROOT / "docs" / "samples" / "sample-block.png"
    truth = sample.with_suffix(".txt").read_text(encoding="utf-8")
    env = environment(IMAGE_WORKERS="1")
    ended = call(sample, "--format", "searchable-pdf", "--out", "out", folder=tmp_path, env=env)
    assert ended.returncode == 0
    text = PdfReader(tmp_path / "out" / "sample-block.searchable.pdf").pages[0].extract_text()
    assert cer(" ".join(truth.split()), " ".join(text.split())) <= LARGEST_CER
