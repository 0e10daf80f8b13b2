"""Pages that come as images: the same views, the same texts, and what is refused."""

import dataclasses
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

from service.engine.gpu.runner import GpuRunner
from service.engine.process.codec import Submit
from service.engine.protocol import SamplingParams, SequenceFailure, SequenceRequest, SequenceResult
from service.engine.vision import preparation
from service.engine.vision.preparation import Preparation, Staging
from shared.deepseek_ocr.forms import MAX_IMAGE_PIXELS, PageImage, PageViews, in_colours, may_be_image
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, plan_views
from shared.deepseek_ocr.images import prepare_views
from shared.deepseek_ocr.unlimited import UNLIMITED_GEOMETRY
from tests.support.frames import through_pipe
from tests.unit.service.engine.gpu_tiny import paged_engine
from tests.unit.service.engine.test_engine import MODEL
from tests.unit.service.engine.tiny import GEOMETRY, PROMPT, drain, tiny_engine

CPU = torch.device("cpu")
SIZES = [(64, 64), (100, 130), (130, 50), (200, 200), (20, 10)]


def image_page(seed: int) -> PageImage:
    width_px, height_px = SIZES[seed % len(SIZES)]
    pixels = np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), np.uint8)
    return PageImage(plan_views(width_px, height_px, Mode.GUNDAM, GEOMETRY), pixels)


def views_of(page: PageImage) -> PageViews:
    return PageViews(page.plan, *prepare_views(Image.fromarray(page.image_HWC), page.plan, GEOMETRY))


def request_of(page, name: str) -> SequenceRequest:
    return SequenceRequest(name, page, PROMPT, SamplingParams(24), "tiny")


def texts(engine, pages) -> dict[str, str]:
    for index, page in enumerate(pages):
        engine.submit(request_of(page, f"page-{index}"))
    events = [event for event in drain(engine) if isinstance(event, SequenceResult | SequenceFailure)]
    assert all(isinstance(event, SequenceResult) for event in events)
    return {event.sequence_id: event.text for event in events}


@pytest.mark.parametrize("make", [tiny_engine, paged_engine])
@pytest.mark.parametrize("views_per_step", [1, 3, 16])
def test_both_forms_give_the_same_texts(make, views_per_step):
    images = [image_page(seed) for seed in range(8)]
    as_views = texts(tiny_engine(MODEL, max_sequence_tokens=512), [views_of(page) for page in images])
    mixed = [page if index % 3 else views_of(page) for index, page in enumerate(images)]
    for pages in (images, mixed):
        assert texts(make(MODEL, max_sequence_tokens=512, views_per_step=views_per_step), pages) == as_views


@pytest.mark.parametrize("seed", range(5))
def test_both_forms_give_the_same_views(seed):
    page = image_page(seed)
    preparation = Preparation(CPU)
    made = preparation.prepare(page, GEOMETRY)
    given = preparation.prepare(views_of(page), GEOMETRY)
    assert len(made) == len(given) == 1 + page.plan.num_tiles
    for ours, pillows in zip(made, given, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), pillows)


@pytest.mark.parametrize(
    "page", [image_page(3), views_of(image_page(3)), views_of(image_page(0))], ids=["image", "tiles", "view"]
)
def test_both_forms_arrive_in_a_frame(page):
    arrived = through_pipe(Submit(request_of(page, "a"))).request.page
    assert type(arrived) is type(page)
    assert arrived.plan == page.plan
    for received, sent in zip(arrived.arrays, page.arrays, strict=True):
        np.testing.assert_array_equal(received, sent)


def faulty_pages():
    image, views = image_page(1), views_of(image_page(1))
    plan, pixels = image.plan, image.image_HWC
    yield "a row too few", dataclasses.replace(image, image_HWC=pixels[:40])
    yield "no colours", dataclasses.replace(image, image_HWC=pixels[..., 0])
    yield "four colours", dataclasses.replace(image, image_HWC=np.concatenate([pixels, pixels[..., :1]], axis=2))
    yield "nothing", dataclasses.replace(image, image_HWC=pixels[:0])
    yield "floats", dataclasses.replace(image, image_HWC=pixels.astype(np.float32))
    yield "plan of another mode", dataclasses.replace(image, plan=dataclasses.replace(plan, mode=Mode.SMALL))
    yield "unknown mode", dataclasses.replace(image, plan=dataclasses.replace(plan, mode=Mode.LARGE))
    yield "too large", dataclasses.replace(image, image_HWC=np.zeros((1, MAX_IMAGE_PIXELS + 1, 3), np.uint8))
    yield "a long side", dataclasses.replace(image, image_HWC=np.zeros((9000, 1, 3), np.uint8))
    yield "a view too small", dataclasses.replace(views, global_view_HWC=views.global_view_HWC[:32])
    yield "a tile too few", dataclasses.replace(views, tiles_THWC=views.tiles_THWC[1:])


@pytest.mark.parametrize(("why", "page"), list(faulty_pages()), ids=[why for why, _ in faulty_pages()])
@pytest.mark.parametrize("make", [tiny_engine, paged_engine])
def test_pixels_that_do_not_fit_their_plan_are_refused(make, why, page):
    engine = make(MODEL)
    engine.submit(request_of(page, "bad"))
    (event,) = drain(engine)
    assert (event.code, event.sequence_id) == ("engine_failed", "bad"), why


def test_a_page_keeps_no_pixels_once_its_views_are_encoded():
    engine = paged_engine(MODEL, max_sequence_tokens=512, views_per_step=5)
    engine.submit(request_of(image_page(1), "a"))
    engine.step()
    assert [(s.pages, s.views) for s in engine._pages.active.values()] == [((), None)]
    drain(engine)


def test_a_page_for_which_there_is_no_memory_fails_alone(monkeypatch):
    engine = paged_engine(MODEL, max_sequence_tokens=512)
    preparation = cast("GpuRunner", engine._runner)._preparation
    real = preparation.prepare

    def limited(page, geometry):
        if page.image_HWC.shape == (200, 200, 3):
            raise torch.cuda.OutOfMemoryError("injected")
        return real(page, geometry)

    monkeypatch.setattr(preparation, "prepare", limited)
    for seed in range(5):
        engine.submit(request_of(image_page(seed), f"page-{seed}"))
    found = {
        event.sequence_id: type(event) for event in drain(engine) if hasattr(event, "timings") or hasattr(event, "code")
    }
    assert [name for name, kind in found.items() if kind is SequenceFailure] == ["page-3"]
    assert len(found) == 5


def test_sizes_that_may_come_as_images():
    assert may_be_image(2480, 3508)
    assert not may_be_image(4000, 3000)
    assert not may_be_image(9000, 10)


def test_an_upload_leaves_the_image_alone():
    pixels = np.arange(30, dtype=np.uint8).reshape(2, 5, 3)
    pixels.flags.writeable = False
    sent = Staging(CPU).upload(pixels)
    sent += 1
    assert pixels[0, 0, 1] == 1


def test_one_colour_is_sent_once_and_is_three_there():
    grey = np.arange(10, dtype=np.uint8).reshape(2, 5, 1)
    sent = Staging(CPU).upload(in_colours(grey))
    assert sent.is_contiguous()
    assert (sent.numpy() == grey).all()
    assert sent.shape == (2, 5, 3)


class Event:
    def __init__(self) -> None:
        self.has_come = False

    def query(self) -> bool:
        return self.has_come


def test_memory_is_written_only_where_nothing_is_copied_from_any_more(monkeypatch):
    monkeypatch.setattr(preparation, "wait_for", lambda event: setattr(event, "has_come", True))
    staging = Staging(CPU, num_bytes=100)
    choose = np.random.default_rng(0)
    under_way: list[tuple[int, int, Event]] = []
    for _ in range(400):
        size = int(choose.integers(1, 101))
        first = staging.reserve(size)
        assert 0 <= first <= 100 - size
        assert not any(first < end and start < first + size for start, end, event in under_way if not event.has_come)
        event = Event()
        staging.note(first, size, event)
        under_way.append((first, first + size, event))
        # Copies end in their order.
        for _, _, oldest in under_way[: int(choose.integers(0, len(under_way)))]:
            oldest.has_come = True
        under_way = under_way[-30:]


def test_the_public_geometries_stay_within_what_memory_is_planned_for():
    from service.engine.gpu.memory import PREPARATION_BYTES

    for geometry in (GeometryConfig(), UNLIMITED_GEOMETRY, GEOMETRY):
        for width_px in range(1, 8192, 61):
            for height_px in {1, min(8192, MAX_IMAGE_PIXELS // width_px), max(1, width_px // 3)}:
                if not may_be_image(width_px, height_px):
                    continue
                for mode in geometry.modes:
                    plan = plan_views(width_px, height_px, mode, geometry)
                    assert Preparation.most_bytes(width_px, height_px, plan, geometry) <= PREPARATION_BYTES
