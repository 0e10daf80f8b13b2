"""A checkpoint's draft head: written and read back, absent, broken or another model's."""

from __future__ import annotations

import shutil

import pytest
import torch

from shared.contract.identity import DRAFT_FILE
from shared.deepseek_ocr.checkpoint import CheckpointError
from shared.deepseek_ocr.draft_head import DraftHead, load_draft_head, save_draft_head
from shared.deepseek_ocr.loading import load_checkpoint
from tests.support.nano import NANO, needs_nano


@needs_nano
@pytest.mark.parametrize("found", ["none", "one", "broken", "other"])
def test_a_checkpoint_is_loaded_with_its_draft_head(found, tmp_path):
    folder = tmp_path / "nano"
    shutil.copytree(NANO, folder, ignore=shutil.ignore_patterns(DRAFT_FILE, "*.py", "__pycache__"))
    width = load_checkpoint(NANO).model.config.text_config.hidden_size
    head = DraftHead(width if found == "one" else width // 2, 1e-6)
    if found != "none":
        save_draft_head(head, folder)
    if found == "broken":
        (folder / DRAFT_FILE).write_bytes(b"no weights")
    if found in ("broken", "other"):
        with pytest.raises(CheckpointError, match=DRAFT_FILE):
            load_checkpoint(folder)
        return
    loaded = load_checkpoint(folder).draft_head
    if found == "none":
        assert loaded is None
        return
    assert loaded is not None
    assert all(
        torch.equal(value, head.state_dict()[key].bfloat16().float()) for key, value in loaded.state_dict().items()
    )


def test_a_folder_without_the_file_has_no_head(tmp_path):
    assert load_draft_head(tmp_path, 64, 1e-6) is None
