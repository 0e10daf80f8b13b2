from __future__ import annotations

from typing import Any

import pytest

from service.adapters.models import ServedModels
from service.engine.fake import FakeEngine
from service.errors import InvalidFieldError, ModelNotFoundError, TooManyPagesError
from service.intake.limits import IntakeLimits
from service.ocr.request import OcrRequest, parse_request
from shared.deepseek_ocr.geometry import GeometryConfig, Mode
from tests.support.fake_engine import SteeredEngine

INFO = FakeEngine(geometry=GeometryConfig(modes=(Mode.SMALL, Mode.GUNDAM), default_mode=Mode.SMALL)).info
MODELS = ServedModels(SteeredEngine())


def make(data: bytes = b"\x89PNG\r\n\x1a\n", cap: int = 100, **wishes: Any) -> OcrRequest:
    return parse_request(
        data=data,
        info=INFO,
        models=MODELS,
        limits=IntakeLimits(max_frames=2, max_pdf_pages=5),
        max_new_tokens_cap=cap,
        **wishes,
    )


def test_defaults_are_the_models() -> None:
    order = make()
    assert (order.mode, order.model_id, order.params.max_new_tokens, order.selection) == (Mode.SMALL, "fake", 100, None)


def test_engines_bound_holds_below_the_settings() -> None:
    assert make(cap=100_000).params.max_new_tokens == INFO.max_new_tokens


def test_unknown_model_is_not_found() -> None:
    with pytest.raises(ModelNotFoundError) as refusal:
        make(model_id="other")
    assert refusal.value.public == {"known": ["fake"]}
    assert make(model_id="fake").model_id == "fake"


def test_mode_the_model_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(InvalidFieldError) as refusal:
        make(mode=Mode.LARGE)
    assert refusal.value.public["expected"] == ["small", "gundam"]


@pytest.mark.parametrize("wanted", [0, 101])
def test_bound_outside_the_cap_is_refused(wanted: int) -> None:
    with pytest.raises(InvalidFieldError):
        make(max_new_tokens=wanted)


def test_how_many_pages_may_be_chosen_depends_on_what_the_file_is() -> None:
    assert make(b"%PDF-1.7", pages="1-5").selection == (1, 2, 3, 4, 5)
    with pytest.raises(TooManyPagesError):
        make(pages="1-5")
