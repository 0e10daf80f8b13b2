from __future__ import annotations

from pathlib import Path

import pytest

from service import engine_choice
from service.config import ServiceSettings
from service.engine.client import ProcessEngine
from service.engine.fake import FakeEngineHandle
from service.engine_choice import build_engine, choose_source
from service.errors import ConfigurationError


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(engine_choice, "SHIPPED_FOLDER", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("given", "cuda", "expected"),
    [
        ({}, False, ("cpu", "float32")),
        ({}, True, ("cuda", "bfloat16")),
        ({"device": "cpu"}, True, ("cpu", "float32")),
        ({"device": "cuda"}, False, ("cuda", "bfloat16")),
        ({"dtype": "float16"}, True, ("cuda", "float16")),
    ],
)
def test_device_and_type_follow_the_machine_unless_set(
    given: dict[str, str], cuda: bool, expected: tuple[str, str]
) -> None:
    source = choose_source(ServiceSettings.model_validate({"model": "some/where", **given}), cuda=cuda)
    assert (source.device, source.dtype) == expected


def test_shipped_model_is_a_folder_with_a_name_of_its_own(shipped: Path) -> None:
    source = choose_source(ServiceSettings(ocr_batch_size=3, max_new_tokens=99), cuda=False)
    assert (source.checkpoint, source.model_id) == (str(shipped), "nano")
    assert (source.limits.batch_size, source.limits.max_new_tokens) == (3, 99)


def test_other_model_keeps_its_name() -> None:
    source = choose_source(ServiceSettings(model="deepseek-ai/DeepSeek-OCR"), cuda=False)
    assert (source.checkpoint, source.model_id) == ("deepseek-ai/DeepSeek-OCR", None)


def test_missing_shipped_model_says_what_to_do(shipped: Path) -> None:
    (shipped / "config.json").unlink()
    with pytest.raises(ConfigurationError, match="shared/nano/ holds no config.json; set DEEPSYNTH_MODEL"):
        build_engine(ServiceSettings())


def test_engine_follows_the_setting(shipped: Path) -> None:
    assert isinstance(build_engine(ServiceSettings()), ProcessEngine)
    assert isinstance(build_engine(ServiceSettings(engine="fake")), FakeEngineHandle)
