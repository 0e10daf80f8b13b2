"""A model is added to the family by one file and one line of the registry."""

import json
import pkgutil
from pathlib import Path

import pytest
import torch

from service.engine.config import EngineLimits
from service.engine.factory import make_engine
from service.errors import EngineError
from shared.deepseek_ocr.checkpoint import load_model, save_checkpoint
from shared.deepseek_ocr.loading import load_checkpoint
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.registry import MODELS, ModelKind
from tests.unit.shared.deepseek_ocr.test_model_ocr2 import write_tokenizer
from tests.unit.shared.deepseek_ocr.tiny_models import tiny_model


def load_made_up(folder: Path, device: str, dtype: torch.dtype, _layers_device: str | None):
    """What a stranger's file offers: here the known model in another name."""
    config = json.loads((folder / "config.json").read_text())
    known = folder / "known"
    known.mkdir()
    (known / "config.json").write_text(json.dumps(config | {"model_type": "deepseek_vl_v2"}))
    for path in folder.glob("*.safetensors"):
        path.rename(known / path.name)
    model = load_model(known, device, dtype)
    model.config.model_type = "made_up"
    return model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_checkpoint(tiny_model(), tmp_path)
    write_tokenizer(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "made_up"}))
    kind = ModelKind(loader=f"{__name__}:load_made_up", decoder="model.layers.", vision=())
    monkeypatch.setitem(MODELS, "made_up", kind)
    return tmp_path


def test_a_model_that_is_registered_is_loaded_and_served_by_its_own_code(folder: Path):
    loaded = load_checkpoint(folder)
    assert isinstance(loaded.model, DeepseekOcrForConditionalGeneration)
    assert loaded.geometry == tiny_model().config.geometry_config()
    assert make_engine(loaded, EngineLimits(batch_size=1)).info.model_id == folder.name
    with pytest.raises(EngineError, match="adapters are not served for this kind of model"):
        make_engine(loaded, EngineLimits(batch_size=1, adapter_slots=1))


@pytest.mark.parametrize("kind", MODELS.values(), ids=list(MODELS))
def test_what_the_registry_names_is_there(kind: ModelKind):
    for name in filter(None, (kind.loader, kind.adopter)):
        assert callable(pkgutil.resolve_name(name))
