"""`python -m service` as people call it."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pypdf import PdfReader

from service.__main__ import main
from service.cli.serve import EXIT_ENGINE_FAILED
from shared.contract.publication import publish
from shared.contract.volume import AdapterVolume
from tests.support.adapters import announcement, write_peft
from tests.support.command import run_here
from tests.support.live_adapters import FAKE_BASE
from tests.support.pdf import make_pdf
from tests.support.programs import free_port, take_interrupts
from tests.support.server import environment, running_server
from tests.support.service import png

pytestmark = pytest.mark.integration


def call(*arguments: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    chosen = {"ENGINE": "fake", "IMAGE_WORKERS": "1", "FAKE_STEP_MS": "0", **settings}
    done = run_here(list(arguments), folder, environment(**chosen))
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "one.png").write_bytes(png("One line of a page"))
    (tmp_path / "two.pdf").write_bytes(make_pdf(["a", "b"]))
    (tmp_path / "bad.png").write_bytes(b"junk")
    return tmp_path


def test_text_of_one_file_is_all_that_is_printed(folder: Path) -> None:
    ended = call("ocr", "one.png", folder=folder)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.stdout.splitlines()) == 1
    assert ended.stdout == call("ocr", "one.png", folder=folder).stdout


def test_old_name_of_a_setting_is_named_at_the_start(folder: Path) -> None:
    ended = call("ocr", "one.png", folder=folder, QUEUE_SIZE="9")
    assert (ended.returncode, len(ended.stderr.splitlines())) == (0, 1)
    assert "DEEPSYNTH_QUEUE_SIZE has been renamed to DEEPSYNTH_MAX_CONCURRENT_REQUESTS" in ended.stderr


def test_several_files_come_in_order_and_a_bad_one_does_not_stop_the_rest(folder: Path) -> None:
    ended = call("ocr", "one.png", "bad.png", "missing.png", "two.pdf", folder=folder)
    assert ended.returncode == 1
    assert [line for line in ended.stdout.splitlines() if line.startswith("==")] == ["== one.png ==", "== two.pdf =="]
    assert "(unsupported_format, found: plain text, advice: " in ended.stderr
    assert "missing.png: No such file or directory" in ended.stderr


def test_json_is_one_object_a_file(folder: Path) -> None:
    ended = call("ocr", "--json", "--pages", "2", "two.pdf", folder=folder)
    answer = json.loads(ended.stdout)
    assert (answer["file"], [page["page"] for page in answer["pages"]]) == ("two.pdf", [2])


def test_format_of_one_file_goes_to_standard_output(folder: Path) -> None:
    command = [sys.executable, "-m", "service", "ocr", "--format", "searchable-pdf", "one.png"]
    chosen = environment(ENGINE="fake", IMAGE_WORKERS="1", FAKE_STEP_MS="0")
    ended = subprocess.run(command, cwd=folder, env=chosen, check=True, capture_output=True, timeout=240)
    words = PdfReader(io.BytesIO(ended.stdout)).pages[0].extract_text()
    assert words.split() == call("ocr", "one.png", folder=folder).stdout.split()
    several = call("ocr", "--format", "alto", "one.png", "two.pdf", folder=folder)
    assert (several.returncode, several.stdout) == (2, "")


def test_task_and_query_reach_the_engine(folder: Path) -> None:
    plain = call("ocr", "one.png", folder=folder)
    located = call("ocr", "--json", "--task", "locate", "--query", "total", "one.png", folder=folder)
    assert json.loads(located.stdout)["pages"][0]["regions"]
    assert plain.stdout.strip() not in located.stdout


@pytest.mark.parametrize(
    "arguments", [["ocr"], ["ocr", "--task", "locate", "x"], ["ocr", "--task", "sing", "x"], ["sing"], []]
)
def test_wrong_usage_is_2_with_a_word_of_help(folder: Path, arguments: list[str]) -> None:
    ended = call(*arguments, folder=folder)
    assert ended.returncode == 2
    assert "usage:" in ended.stderr


def test_misspelt_setting_is_2_with_the_nearest_name(folder: Path) -> None:
    ended = call("serve", folder=folder, PROT="1")
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == "DEEPSYNTH_PROT is not a setting; did you mean DEEPSYNTH_PORT?"


def test_help_shows_what_to_type(folder: Path) -> None:
    ended = call("--help", folder=folder)
    assert ended.returncode == 0
    assert "python -m service ocr scan.png" in ended.stdout
    assert "exit status" in call("ocr", "--help", folder=folder).stdout
    assert call(folder=folder).stderr == ended.stdout


def test_describe_prints_a_page(folder: Path) -> None:
    assert call("describe", "errors", folder=folder).stdout.startswith("# Errors")
    assert call("describe", "nothing", folder=folder).returncode == 2


def test_adapters_are_listed_pinned_and_rolled_back_from_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    volume, key = tmp_path / "volume", "correct horse battery"
    volume.mkdir()
    adapter = write_peft(tmp_path / "trained")
    settings = {"ADAPTER_DIR": str(volume), "ADAPTER_STATE_DIR": str(tmp_path / "state"), "ADAPTER_POLL_S": "0.1"}
    monkeypatch.chdir(tmp_path)

    def order(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main(["adapters", *words])
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    with running_server(ADMIN_KEY=key, **settings) as server:
        monkeypatch.setenv("DEEPSYNTH_PORT", str(server.port))
        monkeypatch.setenv("DEEPSYNTH_ADMIN_KEY", key)
        assert order("list") == (0, "no adapters\n", "")
        for _ in range(2):
            publish(AdapterVolume(volume), adapter, announcement(base=FAKE_BASE))
        server.wait_metric('deepsynth_adapter_served_version{adapter="invoices"}', 2)
        assert order("pin", "invoices@1", "--why", "a test")[1].startswith("invoices: serving invoices@1, pinned")
        assert order("pin", "invoices", "--why", "a test")[1].startswith("invoices: serving invoices@2\n")
        assert "2  refused" in order("rollback", "invoices", "--why", "a test")[1]
        assert json.loads(order("list", "--json")[1])["adapters"][0]["serving"] == "invoices@1"
        status, _, complaint = order("refuse", "invoices@7", "--why", "a test")
        assert (status, "known: ['invoices@1', 'invoices@2']" in complaint) == (1, True)
        monkeypatch.setenv("DEEPSYNTH_ADMIN_KEY", "another horse battery")
        assert order("rollback", "invoices", "--why", "x")[0] == 1
        for words in (["pin", "../x"], ["refuse", "invoices"], ["rollback", "invoices@1"]):
            assert order(*words, "--why", "x")[0] == 2
        assert order("pin", "invoices@1")[0] == 2
    lines = [json.loads(line) for line in (tmp_path / "state" / "audit.jsonl").read_text().splitlines()]
    assert [line["what"] for line in lines if line["who"] != "service"] == ["pinned", "unpinned", "refused"]
    status, _, complaint = order("list", "--url", server.url)
    assert (status, server.url in complaint) == (1, True)


def test_image_process_that_cannot_import_ends_the_service_with_one_line(tmp_path: Path) -> None:
    package = tmp_path / "path" / "pypdfium2"
    package.mkdir(parents=True)
    (package / "raw.py").touch()
    (package / "__init__.py").write_text(
        "import sys\nif 'service.intake.child' in sys.orig_argv:\n    raise ImportError('no libpdfium.so')\n"
    )
    chosen = environment(ENGINE="fake", IMAGE_WORKERS="1", PORT=str(free_port()))
    ended = subprocess.run(
        [sys.executable, "-m", "service", "serve"],
        cwd=tmp_path,
        env={**chosen, "PYTHONPATH": f"{package.parent}:{chosen['PYTHONPATH']}"},
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == EXIT_ENGINE_FAILED
    assert "an image process did not start: ImportError: no libpdfium.so" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_interrupted_reading_says_how_far_it_came(tmp_path: Path) -> None:
    (tmp_path / "page.png").write_bytes(png())
    (tmp_path / "empty.png").write_bytes(b"")
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "ocr", "empty.png", "page.png"],
        cwd=tmp_path,
        env=environment(ENGINE="fake", FAKE_STEP_MS="60000", IMAGE_WORKERS="1"),
        preexec_fn=take_interrupts,  # noqa: PLW1509 -- it only sets a signal
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    assert first.startswith("empty.png: ")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (130, "")
    assert errors == "\nInterrupted. Files printed: 1 of 2.\n"


def test_how_pages_without_print_are_read_can_be_chosen(folder: Path) -> None:
    (folder / "blank.pdf").write_bytes(make_pdf([""]))
    statuses = {
        chosen: json.loads(call("ocr", "--json", *chosen, "blank.pdf", folder=folder).stdout)["pages"][0]["status"]
        for chosen in [(), ("--blank-pages", "read")]
    }
    assert list(statuses.values()) == ["blank", "ok"]
    wrong = call("ocr", "--min-confidence", "2", "one.png", folder=folder)
    assert wrong.returncode == 2
    assert "number from 0 to 1" in wrong.stderr
