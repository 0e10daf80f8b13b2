"""A merged checkpoint is served with the texts that base and adapter are served with."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.contract.publication import publish
from shared.deepseek_ocr.loading import load_checkpoint
from tests.integration.test_service_adapters_native import native_service, read
from tests.support.adapters import announcement
from tests.support.checkpoint_adapters import base_of, write_adapter
from tests.support.training import write_checkpoint, write_words
from trainer.cli import main

pytestmark = [pytest.mark.integration, pytest.mark.slow]
TEXTS = ("Invoice 2041", "the page", "12 of 34")


async def test_merged_and_adapter_are_served_with_the_same_texts(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "tiny")
    adapter = write_adapter(tmp_path / "adapter", load_checkpoint(base).model, 3, strength=4.0)
    pages = write_words(tmp_path / "words", 8)
    words = f"merge --adapter {adapter} --base {base} --data {pages} --split validation --out {tmp_path}/merged"
    assert main([*words.split(), "--dtype", "float32", "--device", "cpu", "--max-new-tokens", "12"]) == 0
    async with native_service(tmp_path, str(base)) as live:
        publish(live.volume, adapter, announcement("a0", base=base_of(base)))
        await live.serves("a0", 1)
        alone = [(await read(live, None, text))["text"] for text in TEXTS]
        adapted = [(await read(live, "a0", text))["text"] for text in TEXTS]
    (tmp_path / "other").mkdir()
    async with native_service(tmp_path / "other", str(tmp_path / "merged")) as live:
        merged = [await read(live, None, text) for text in TEXTS]
    assert [answer["text"] for answer in merged] == adapted
    assert adapted != alone
    assert {answer["model_id"] for answer in merged} == {"merged"}
