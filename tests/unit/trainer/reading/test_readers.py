"""Readers: the model, Tesseract and a service, each asked for what it should be asked."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import sys
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from shared.contract.identity import weights_revision
from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import Mode, plan_views
from shared.deepseek_ocr.images import prepare_views
from tests.support.evaluation import write_set
from tests.support.stub_service import serving
from tests.support.tiny_model import TINY_GEOMETRY, tiny_model, tiny_tokenizer
from trainer.config import child_environment
from trainer.evaluation.samples import Layout, Sample, load_set, open_page
from trainer.reading import rapidocr as rapidocr_module
from trainer.reading import service as service_module
from trainer.reading.generation import generate_texts
from trainer.reading.model import ModelReader, ReadingOptions
from trainer.reading.protocol import ReaderError
from trainer.reading.rapidocr import RapidReader
from trainer.reading.service import ServiceReader, multipart, retry_after_s
from trainer.reading.tesseract import TesseractReader


def test_the_model_reads_each_page_through_its_own_views(tmp_path):
    pages = [("a.png", "line", "ab"), ("b.png", "page", "two\nlines"), ("c.png", "line", "cd"), ("d.png", "line", "x")]
    samples = load_set(write_set(tmp_path, pages)).samples
    model, tokenizer = tiny_model(), tiny_tokenizer()
    reader = ModelReader(model, tokenizer, TINY_GEOMETRY, "tiny", ReadingOptions(batch_size=2, max_new_tokens=12))
    readings = dict(reader.read(samples))
    for index, sample in enumerate(samples):
        image = open_page(sample.image_path)
        plan = plan_views(*image.size, Mode.GUNDAM, TINY_GEOMETRY)
        page = PageViews(plan, *prepare_views(image, plan, TINY_GEOMETRY))
        (alone,) = generate_texts(model, tokenizer, [page], prompt_for(Task.FREE), 12, "cpu")
        assert (readings[index].text, readings[index].ended) == (alone.text, alone.ended)
    assert all(reading.seconds > 0 for reading in readings.values())
    assert reader.details["mode"] == "gundam"


def test_the_checksum_is_of_all_weights_and_absent_without_any(tmp_path):
    (tmp_path / "b.safetensors").write_bytes(b"second")
    (tmp_path / "a.safetensors").write_bytes(b"first")
    assert weights_revision(tmp_path) == hashlib.sha256(b"firstsecond").hexdigest()
    assert weights_revision(tmp_path / "none") is None


@pytest.fixture
def stub_tesseract(tmp_path):
    """A program that answers with its arguments and its thread limit, and fails on files called bad."""
    program = tmp_path / "bin" / "tesseract"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\ncase "$1" in --version) echo "tesseract 5.9.1";; *bad.png) exit 1;;'
        ' *) shift; echo "$* threads=$OMP_THREAD_LIMIT";; esac\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def test_tesseract_is_told_the_layout_and_to_use_one_thread(tmp_path, stub_tesseract):
    pages = [("l.png", "line", "x"), ("b.png", "block", "x"), ("p.png", "page", "x"), ("bad.png", "line", "x")]
    samples = load_set(write_set(tmp_path / "set", pages)).samples
    reader = TesseractReader({"PATH": "/usr/bin:/bin"}, program=str(stub_tesseract))
    readings = dict(reader.read(samples))
    assert [readings[index].text.strip() for index in range(3)] == [
        f"- --psm {mode} -l eng threads=1" for mode in (7, 6, 3)
    ]
    assert (readings[3].text, readings[3].ended) == ("", False)
    assert reader.name == "Tesseract 5.9.1"


def test_a_missing_tesseract_is_said_at_once():
    with pytest.raises(ReaderError, match="apt-get install tesseract-ocr"):
        TesseractReader({"PATH": "/nowhere"})


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="needs the program tesseract")
def test_the_real_tesseract_reads_a_clean_line(tmp_path):
    samples = load_set(write_set(tmp_path, [("a.png", "line", "Plain words here")])).samples
    ((_, reading),) = TesseractReader(child_environment()).read(samples)
    assert reading.text.strip() == "Plain words here"


@pytest.fixture
def stub_rapidocr(monkeypatch):
    """A package that finds two cells of one line below a heading, nothing on a red page, and fails on a blue one."""

    class RapidOCR:
        def __init__(self, params):
            assert params == {"Global.log_level": "error", "EngineConfig.onnxruntime.intra_op_num_threads": 2}

        def __call__(self, image):
            assert (image.dtype, image.ndim, image.flags.c_contiguous) == (np.uint8, 3, True)
            blue, _, red = image[0, 0]
            if red > blue:
                return SimpleNamespace(boxes=None, txts=None)
            if blue > red:
                raise RuntimeError("a fault of the package")
            boxes = [[(x, y), (x + 40, y), (x + 40, y + 10), (x, y + 10)] for x, y in ((60, 32), (5, 0), (5, 30))]
            return SimpleNamespace(boxes=boxes, txts=("9.50", "Invoice", "Total"))

    module = ModuleType("rapidocr")
    vars(module)["RapidOCR"] = RapidOCR
    for name in rapidocr_module.PACKAGES:
        stub = module if name == "rapidocr" else ModuleType(name)
        stub.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, stub)
    monkeypatch.setattr(rapidocr_module, "version", {"rapidocr": "3.10.0", "onnxruntime": "1.32.0"}.__getitem__)


@pytest.mark.usefixtures("stub_rapidocr")
def test_boxes_of_rapidocr_become_lines(tmp_path):
    samples = load_set(write_set(tmp_path, [("a.png", "block", "x"), ("blank.png", "line", "x")])).samples
    Image.new("RGB", (40, 20), "red").save(samples[1].image_path)
    reader = RapidReader(2)
    readings = dict(reader.read(samples))
    assert [readings[index].text for index in range(2)] == ["Invoice\nTotal 9.50", ""]
    assert reader.name == "RapidOCR 3.10.0"
    assert reader.details == {"rapidocr": "3.10.0", "onnxruntime": "1.32.0", "threads": "2"}


@pytest.mark.usefixtures("stub_rapidocr")
def test_an_image_that_rapidocr_cannot_read_costs_that_image(tmp_path):
    pages = [("cut.jpg", "line", "x"), ("fault.png", "line", "x"), ("deep.png", "line", "x")]
    samples = load_set(write_set(tmp_path, pages)).samples
    samples[0].image_path.write_bytes(samples[0].image_path.read_bytes()[:100])
    Image.new("RGB", (40, 20), "blue").save(samples[1].image_path)
    Image.fromarray(np.full((20, 40), 60000, np.uint16)).save(samples[2].image_path)
    readings = dict(RapidReader(2).read(samples))
    assert [(readings[index].text, readings[index].ended) for index in range(3)] == [
        ("", False),
        ("", False),
        ("Invoice\nTotal 9.50", True),
    ]


def test_a_missing_rapidocr_is_said_at_once(monkeypatch):
    monkeypatch.setattr(rapidocr_module, "PACKAGES", ("no_such_package",))
    with pytest.raises(ReaderError, match="trainer-rapidocr"):
        RapidReader()


@pytest.mark.skipif(find_spec("rapidocr") is None, reason="needs the extra trainer-rapidocr")
def test_the_real_rapidocr_reads_a_clean_line(tmp_path):
    samples = load_set(write_set(tmp_path, [("a.png", "line", "Plain words here")])).samples
    ((_, reading),) = RapidReader().read(samples)
    assert reading.text.split() == ["Plain", "words", "here"]


class StubService(BaseHTTPRequestHandler):
    """Busy at first, then answers with what it was sent."""

    requests = 0

    def do_POST(self):
        StubService.requests += 1
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/base/ocr" or b"refused.png" in body:
            return self._answer(422, {"code": "undecodable"})
        if StubService.requests == 1:
            return self._answer(503, {"code": "busy"})
        has_task = b'name="task"\r\n\r\nfree\r\n' in body
        finish = "repetition" if b"loop.png" in body else "stop"
        return self._answer(200, {"text": f"{has_task} {b'PNG' in body}", "finish_reason": finish})

    def _answer(self, status, record):
        content = json.dumps(record).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if status == 503:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def service_url():
    StubService.requests = 0
    with serving(StubService) as url:
        yield f"{url}/base/"


def test_the_service_gets_file_and_fields_and_is_asked_again_when_busy(tmp_path, service_url):
    samples = load_set(write_set(tmp_path, [("a.png", "line", "x"), ("loop.png", "line", "x")])).samples
    readings = dict(ServiceReader(service_url, {"task": "free"}, concurrency=1).read(samples))
    assert [(reading.text, reading.ended) for _, reading in sorted(readings.items())] == [
        ("True True", True),
        ("True True", False),
    ]
    assert StubService.requests == 3


def test_a_refusal_or_no_service_ends_the_evaluation(tmp_path, service_url):
    samples = load_set(write_set(tmp_path, [("refused.png", "line", "x")])).samples
    with pytest.raises(ReaderError, match=r"422 to refused\.png"):
        list(ServiceReader(service_url, {}).read(samples))
    with pytest.raises(ReaderError, match="no service at"):
        list(ServiceReader("http://127.0.0.1:9", {}, patience_s=0.1).read(samples))
    with pytest.raises(ReaderError, match="not an HTTP URL"):
        ServiceReader("ftp://127.0.0.1", {})


class MoodyService(BaseHTTPRequestHandler):
    """Answers a page with its name after a few bad moods, another set of them for every page."""

    moods = ("429", "503", "drop", "500", "200")
    seen: ClassVar[dict[str, int]] = {}
    lock = threading.Lock()
    alive = 0
    most_alive = 0

    def do_POST(self):
        with self.lock:
            MoodyService.alive += 1
            MoodyService.most_alive = max(self.most_alive, self.alive)
        try:
            self._answer()
        finally:
            with self.lock:
                MoodyService.alive -= 1

    def _answer(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        name = body.partition(b'filename="')[2].partition(b'"')[0].decode()
        with self.lock:
            attempt = self.seen[name] = self.seen.get(name, 0) + 1
        mood = "200" if attempt > 3 else self.moods[(int(name[1:-4]) * 7 + attempt) % len(self.moods)]
        if mood == "drop":
            self.close_connection = True
            return
        content = json.dumps({"text": name, "finish_reason": "stop"}).encode()
        self.send_response(int(mood))
        self.send_header("Content-Length", str(len(content)))
        if mood == "429":
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def moody_url():
    MoodyService.seen.clear()
    with serving(MoodyService) as url:
        yield url


def test_no_page_is_lost_to_a_service_that_is_busy_faulty_or_drops_connections(tmp_path, moody_url, monkeypatch):
    monkeypatch.setattr(service_module, "FIRST_PAUSE_S", 0.001)
    samples = [Sample(f"p{number}.png", "all", Layout.LINE, tmp_path / f"p{number}.png", "") for number in range(150)]
    for sample in samples:
        sample.image_path.write_bytes(b"a page")
    readings = list(ServiceReader(moody_url, {}, concurrency=12).read(samples))
    assert sorted(index for index, _ in readings) == list(range(150))
    assert all(reading.text == f"p{index}.png" for index, reading in readings)
    assert sum(MoodyService.seen.values()) > 300
    assert 2 <= MoodyService.most_alive <= 12


def test_a_page_that_always_meets_a_fault_ends_it_and_so_does_endless_business(tmp_path, moody_url, monkeypatch):
    monkeypatch.setattr(service_module, "FIRST_PAUSE_S", 0.001)
    sample = Sample("p1.png", "all", Layout.LINE, tmp_path / "p1.png", "")
    sample.image_path.write_bytes(b"a page")
    monkeypatch.setattr(MoodyService, "moods", ("500",))
    monkeypatch.setattr(service_module, "FAULT_ATTEMPTS", 3)
    with pytest.raises(ReaderError, match=r"answered 500 to p1\.png"):
        list(ServiceReader(moody_url, {}).read([sample]))
    MoodyService.seen.clear()
    monkeypatch.setattr(MoodyService, "moods", ("503",))
    with pytest.raises(ReaderError, match="lower --concurrency"):
        list(ServiceReader(moody_url, {}, patience_s=0.0).read([sample]))


def test_what_retry_after_says_is_a_number_or_a_date():
    now = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
    assert retry_after_s("7") == 7.0
    assert retry_after_s("Sun, 22 Nov 2026 12:00:30 GMT", now) == 30.0
    assert retry_after_s("Sun, 22 Nov 2026 11:00:30 GMT", now) == 0.0
    assert retry_after_s("soon") is retry_after_s("") is None


def test_a_form_keeps_bytes_and_cannot_be_broken_by_a_name():
    body, content_type = multipart({"task": "free"}, 'a"\r\nb.png', b"\r\n--\x00\xff")
    boundary = content_type.partition("boundary=")[2].encode()
    parts = body.split(b"--" + boundary)
    assert len(parts) == 4
    assert parts[1] == b'\r\nContent-Disposition: form-data; name="task"\r\n\r\nfree\r\n'
    assert parts[2].endswith(b"\r\n\r\n\r\n--\x00\xff\r\n")
    assert b'filename="a___b.png"' in parts[2]


def test_layouts_have_a_limit_and_a_segmentation_each():
    from trainer.reading.model import MAX_NEW_TOKENS
    from trainer.reading.tesseract import PAGE_SEGMENTATION

    assert set(MAX_NEW_TOKENS) == set(PAGE_SEGMENTATION) == set(Layout)


def test_images_may_be_wider_than_any_view(tmp_path):
    Image.new("L", (2000, 30), 255).save(tmp_path / "wide.png")
    (tmp_path / "wide.txt").touch()
    (tmp_path / "index.jsonl").write_text(json.dumps({"image": "wide.png", "tier": "line", "text": "wide.txt"}))
    samples = load_set(tmp_path).samples
    reader = ModelReader(
        tiny_model(), tiny_tokenizer(), TINY_GEOMETRY, "tiny", ReadingOptions(max_new_tokens=2, mode=Mode.SMALL)
    )
    assert [index for index, _ in reader.read(samples)] == [0]
