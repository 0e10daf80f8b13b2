"""Chats as sources: messages, ShareGPT's conversations, OpenAI's parts; prompts, images, and what is refused."""

from __future__ import annotations

import base64
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.page_sources import LONG, drawn, encoded, write_pages
from trainer.cli import main
from trainer.data.errors import RowCode
from trainer.data.prepare.manifest import load_manifest
from trainer.data.sources.columns import Columns
from trainer.data.sources.protocol import PROMPT_COLUMN
from trainer.data.sources.rejected_rows import RejectedRows
from trainer.data.sources.resolve import open_source
from trainer.data.sources.samples import read_samples

ASKED, ANSWER = "<image>\nFree OCR.", "two\nlines"
USER, ASSISTANT = {"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWER}


def data_url(number=0):
    return "data:image/png;base64," + base64.b64encode(encoded(drawn(str(number)))).decode()


CHATS = {
    "messages": {"messages": [USER, ASSISTANT], "images": ["p00.png"]},
    "one image": {"messages": [USER, ASSISTANT], "image": "p00.png"},
    "system": {"messages": [{"role": "system", "content": "be brief"}, USER, ASSISTANT], "images": ["p00.png"]},
    "sharegpt": {
        "conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWER}],
        "image": "p00.png",
    },
    "openai": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Free OCR."},
                                         {"type": "image_url", "image_url": {"url": data_url()}}]},
            {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
        ]
    },
    "marked": {
        "messages": [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Free OCR."}]},
            ASSISTANT,
        ],
        "images": ["p00.png"],
    },
}  # fmt: skip


def write(folder, *rows):
    write_pages(folder, 2)
    for file in folder.glob("*.txt"):
        file.unlink()
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "chat.jsonl"


def samples_of(path):
    rejected = RejectedRows()
    return list(read_samples(open_source(str(path)), Columns(), rejected)), rejected.broken


@pytest.mark.parametrize("kind", CHATS)
def test_every_way_to_write_a_chat_is_read(tmp_path, kind):
    path = write(tmp_path, CHATS[kind])
    samples, broken = samples_of(path)
    assert broken == []
    assert [(sample.text, sample.images[0].width_px) for sample in samples] == [(ANSWER, 120)]
    row = next(open_source(str(path)).rows())
    assert row.fields[PROMPT_COLUMN] == "Free OCR."


def test_a_list_and_parquet_of_chats_are_read(tmp_path):
    path = write(tmp_path, CHATS["messages"])
    (tmp_path / "chat.json").write_text(json.dumps([CHATS["sharegpt"]]))
    rows = [{"messages": [USER, ASSISTANT], "images": [{"bytes": encoded(drawn("0")), "path": None}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "chat.parquet")
    for file in (path, tmp_path / "chat.json", tmp_path / "chat.parquet"):
        assert [sample.text for sample in samples_of(file)[0]] == [ANSWER]


def test_several_images_are_one_document(tmp_path):
    samples, _ = samples_of(write(tmp_path, {"messages": [USER, ASSISTANT], "images": ["p00.png", "p01.png"]}))
    assert [len(sample.images) for sample in samples] == [2]


@pytest.mark.parametrize(
    ("chat", "code", "reason"),
    [
        ({"messages": [USER, ASSISTANT, USER, ASSISTANT], "images": ["p00.png"]}, RowCode.CHAT_INVALID, "one question"),
        ({"messages": [ASSISTANT], "images": ["p00.png"]}, RowCode.CHAT_INVALID, "one question"),
        ({"messages": [], "images": ["p00.png"]}, RowCode.CHAT_INVALID, "no list"),
        ({"messages": "hello", "images": ["p00.png"]}, RowCode.CHAT_INVALID, "no list"),
        ({"messages": [USER, {"role": "tool", "content": "x"}]}, RowCode.CHAT_INVALID, "role 'tool'"),
        ({"messages": [USER, "x"], "images": ["p00.png"]}, RowCode.CHAT_INVALID, "not an object"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}, ASSISTANT]},
            RowCode.CHAT_INVALID,
            "audio",
        ),
        ({"messages": [USER, ASSISTANT]}, RowCode.IMAGE_MISSING, "no image"),
        (
            {"messages": [USER, {"role": "assistant", "content": " "}], "images": ["p00.png"]},
            RowCode.TEXT_EMPTY,
            "empty",
        ),
        ({"messages": [USER, ASSISTANT], "images": ["https://host.example/a.png"]}, RowCode.IMAGE_REMOTE, "URL"),
        ({"messages": [USER, ASSISTANT], "images": ["../a.png"]}, RowCode.IMAGE_OUTSIDE, "outside"),
    ],
)
def test_chats_that_are_no_page_are_refused_with_the_reason(tmp_path, chat, code, reason):
    samples, broken = samples_of(write(tmp_path / "in", CHATS["messages"], chat))
    assert len(samples) == 1
    assert [(row.number, row.code) for row in broken] == [(2, code)]
    assert reason in broken[0].reason


def test_prompts_are_counted_by_task_and_kept(tmp_path, capsys):
    questions = ["Free OCR.", "<|grounding|>Convert the document to markdown.", "What is the total?"]
    rows = [
        {"messages": [{"role": "user", "content": questions[n % 3]}, {"role": "assistant", "content": f"{LONG} {n}"}],
         "images": [data_url(n)]} for n in range(12)
    ]  # fmt: skip
    out = tmp_path / "set"
    words = ["--validation-share", "0.4", "--out", str(out)]
    assert main(["prepare", str(write(tmp_path / "in", *rows)), *words]) == 0
    assert "4 free, 4 markdown, 4 other" in capsys.readouterr().out
    assert load_manifest(out)["prompts"] == {"free": 4, "markdown": 4, "other": 4}
    kept = [prompt for file in out.rglob("*.parquet") for prompt in pq.read_table(file)["prompt"].to_pylist()]
    assert sorted(set(kept)) == sorted(questions)
    again = tmp_path / "again"
    assert main(["prepare", str(out), "--format", "webdataset", "--out", str(again)]) == 0
    assert load_manifest(again)["prompts"] == {"free": 4, "markdown": 4, "other": 4}
