"""A model is added to the family by one file and one entry of the registry."""

import json
import pkgutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from service.engine.config import EngineLimits
from service.engine.factory import make_engine
from service.engine.protocol import SequenceResult
from service.errors import EngineError
from shared.contract.calibration import Calibration, write_calibration
from shared.contract.confidence import MonotoneMap
from shared.contract.prompts import Task
from shared.deepseek_ocr.checkpoint import CheckpointError, load_model, save_checkpoint
from shared.deepseek_ocr.loading import load_checkpoint
from shared.deepseek_ocr.registry import MODELS, V1, ModelKind
from tests.unit.service.engine.tiny import drain, tiny_model, tiny_request
from tests.unit.shared.deepseek_ocr.test_model_ocr2 import write_tokenizer

FILE = '''
"""DeepSeek-OCR with rotary positions of another base."""

from shared.deepseek_ocr.checkpoint import load_model
from shared.deepseek_ocr.configuration import DeepseekOcrConfig
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration


class MadeUpConfig(DeepseekOcrConfig):
    model_type = "made_up"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.text_config.rope_theta = 3.0


class MadeUp(DeepseekOcrForConditionalGeneration):
    config_class = MadeUpConfig


def load_made_up(folder, device, dtype, layers_device):
    return load_model(folder, device, dtype, layers_device, MadeUp)
'''


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The one file, imported, and its entry."""
    made_up = ModuleType("made_up_file")
    exec(FILE, made_up.__dict__)
    monkeypatch.setitem(sys.modules, made_up.__name__, made_up)
    monkeypatch.setitem(MODELS, "made_up", replace(V1, loader="made_up_file:load_made_up"))
    return made_up


def write(model, folder: Path) -> Path:
    save_checkpoint(model, folder, "float32")
    write_tokenizer(folder)
    return folder


def text_read(folder: Path) -> str:
    engine = make_engine(load_checkpoint(folder), EngineLimits(batch_size=1))
    engine.submit(tiny_request("a", max_new_tokens=16, width_px=128, model_id=folder.name))
    (result,) = (event for event in drain(engine) if isinstance(event, SequenceResult))
    return result.text


def test_a_model_of_one_file_and_one_entry_reads_a_page_through_the_engine(
    tmp_path: Path, module: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    known = tiny_model()
    with torch.no_grad():
        made_up = module.MadeUp(module.MadeUpConfig(**known.config.to_dict() | {"model_type": "made_up"})).eval()
        made_up.load_state_dict(known.state_dict())
    folder = write(made_up, tmp_path / "made-up")
    loaded = load_checkpoint(folder)
    assert type(loaded.model) is module.MadeUp
    assert make_engine(loaded, EngineLimits(batch_size=1, adapter_slots=1)).info.adapter_slots == 1
    text = text_read(folder)
    assert text != text_read(write(known, tmp_path / "known"))

    own_code = ModelKind("Made up", MODELS["made_up"].loader, V1.skeleton, decoder="model.layers.", vision=())
    monkeypatch.setitem(MODELS, "made_up", own_code)
    assert text_read(folder) == text
    with pytest.raises(EngineError, match="adapters are not served for this kind of model"):
        make_engine(loaded, EngineLimits(batch_size=1, adapter_slots=1))


def test_a_checkpoint_is_not_loaded_as_another_model_than_its_own(tmp_path: Path, module: ModuleType):
    with pytest.raises(CheckpointError, match="model_type is 'deepseek_vl_v2', expected 'made_up'"):
        load_model(write(tiny_model(), tmp_path), model_class=module.MadeUp)


@pytest.mark.parametrize("kind", MODELS.values(), ids=list(MODELS))
def test_what_the_registry_names_is_there(kind: ModelKind):
    for name in filter(None, (kind.loader, kind.skeleton, kind.adopter)):
        assert callable(pkgutil.resolve_name(name))


def test_calibration_next_to_the_weights_reaches_the_service(tmp_path: Path):
    folder = write(tiny_model(), tmp_path / "tiny")
    maps = Calibration(*2 * (MonotoneMap(2.0, (-1.0, 0.0), (0.25, 1.0)),))
    assert load_checkpoint(folder).calibration is None
    path = write_calibration(folder, maps, {})
    engine = make_engine(load_checkpoint(folder), EngineLimits(batch_size=2))
    assert engine.info.calibration == maps
    for name, wants in (("plain", False), ("scored", True)):
        request = tiny_request(name, max_new_tokens=16, width_px=128, model_id=folder.name)
        engine.submit(replace(request, wants_token_scores=wants))
    results = {event.sequence_id: event for event in drain(engine) if isinstance(event, SequenceResult)}
    assert results["plain"].token_scores is None
    scores = results["scored"].token_scores
    assert scores is not None
    assert len(scores.log_probabilities) == results["scored"].completion_tokens
    path.write_text("{}")
    with pytest.raises(CheckpointError, match=r"calibration\.json"):
        load_checkpoint(folder)


def test_a_checkpoint_can_do_every_task_unless_it_says_which(tmp_path: Path) -> None:
    folder = write(tiny_model(), tmp_path / "all")
    assert load_checkpoint(folder).tasks == tuple(Task)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tasks": ["ocr", "free"]}))
    checkpoint = load_checkpoint(folder)
    assert checkpoint.tasks == (Task.FREE, Task.OCR)
    assert make_engine(checkpoint, EngineLimits(batch_size=1)).info.tasks == (Task.FREE, Task.OCR)
    again = write(checkpoint.model, tmp_path / "again")
    assert load_checkpoint(again).tasks == (Task.FREE, Task.OCR)


@pytest.mark.parametrize("tasks", [[], ["sing"], ["free", "sing"], "free", ["free", "free"]])
def test_tasks_that_do_not_exist_stop_the_load(tmp_path: Path, tasks: object) -> None:
    folder = write(tiny_model(), tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tasks": tasks}))
    with pytest.raises(CheckpointError, match="tasks"):
        load_checkpoint(folder)
