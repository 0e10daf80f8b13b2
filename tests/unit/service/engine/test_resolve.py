from __future__ import annotations

from pathlib import Path

import pytest

from service.config import ServiceSettings
from service.engine import resolve as choice
from service.engine.config import EngineLimits, EngineSource, WeightForm
from service.engine.process.engines import ProcessEngine
from service.engine.resolve import choose_source
from service.errors import ConfigurationError
from service.reader_parts import build_engine


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(choice, "SHIPPED_FOLDER", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def choose(model: str = "some/where", device: str = "auto", dtype: str = "auto", *, cuda: bool = False) -> EngineSource:
    return choose_source(model=model, device=device, dtype=dtype, limits=EngineLimits(batch_size=3), cuda=cuda)


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
    source = choose(**given, cuda=cuda)
    assert (source.device, source.dtype) == expected


def test_shipped_model_is_a_folder_with_a_name_of_its_own(shipped: Path) -> None:
    source = choose("nano")
    assert (source.checkpoint, source.model_id, source.limits.batch_size) == (str(shipped), "nano", 3)


def test_the_shipped_model_is_too_small_to_be_rounded(shipped: Path) -> None:
    assert choose("nano", cuda=True).dtype == "float32"
    assert choose("nano", dtype="bfloat16", cuda=True).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("given", "cuda", "expected"),
    [({}, False, True), ({"dtype": "float32"}, False, False), ({}, True, False), ({"device": "cpu"}, True, True)],
)
def test_canvases_may_be_rounded_on_a_cpu_unless_a_type_is_set(given, cuda, expected) -> None:
    assert choose(**given, cuda=cuda).limits.rounds_canvases is expected


def test_8_bit_weights_are_for_a_gpu_alone() -> None:
    values = {"model": "some/where", "dtype": "auto", "limits": EngineLimits(weights=WeightForm.INT8)}
    assert choose_source(**values, device="auto", cuda=True).limits.weights is WeightForm.INT8
    for device, cuda in (("auto", False), ("cpu", True)):
        with pytest.raises(ConfigurationError, match="DEEPSYNTH_QUANTIZATION"):
            choose_source(**values, device=device, cuda=cuda)


def test_other_model_keeps_its_name() -> None:
    source = choose("deepseek-ai/DeepSeek-OCR")
    assert (source.checkpoint, source.model_id) == ("deepseek-ai/DeepSeek-OCR", None)


def test_missing_shipped_model_says_what_to_do(shipped: Path) -> None:
    (shipped / "config.json").unlink()
    with pytest.raises(ConfigurationError, match="holds no config"):
        build_engine(ServiceSettings())


def test_engine_follows_the_setting(shipped: Path) -> None:
    assert isinstance(build_engine(ServiceSettings()), ProcessEngine)
    assert isinstance(build_engine(ServiceSettings(engine="fake")), ProcessEngine)
