"""DeepSeek-OCR-2 in the engine's rows: every row chooses what it chooses alone."""

import torch

from service.engine.cpu.runner import CpuRunner, Prompt
from shared.contract.repetition import LoopRule
from tests.support.ocr2 import WIDTH, reader_of, tiny_ocr2

NEW_TOKENS = 12


def test_rows_of_different_length_choose_what_each_chooses_alone():
    theirs = tiny_ocr2()
    prompts = [[0, 10, 11, 12, 13], [0, 20, 21], [0, 30, 31, 32, 33]]
    alone = [
        theirs.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)[
            0, len(ids) :
        ].tolist()
        for ids in prompts
    ]
    runner = CpuRunner(reader_of(theirs), max_rows=3, max_tokens=64, eos_id=1, rule=LoopRule())
    rows = [[choice.token] for choice in runner.prefill([Prompt(ids, torch.zeros(0, WIDTH)) for ids in prompts])]
    for _ in range(NEW_TOKENS - 1):
        for row, choice in zip(rows, runner.decode([row[-1] for row in rows], {}), strict=True):
            row.append(choice.token)
    assert rows == alone
