import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shared.contract.prompts import Task, prompt_for, split_prompt

PUBLIC = {prompt_for(task) for task in Task if task is not Task.LOCATE}


@pytest.mark.parametrize(
    ("task", "prompt"),
    [
        (Task.FREE, "\nFree OCR."),
        (Task.MARKDOWN, "\n<|grounding|>Convert the document to markdown."),
        (Task.OCR, "\n<|grounding|>OCR this image."),
        (Task.FIGURE, "\nParse the figure."),
        (Task.DESCRIBE, "\nDescribe this image in detail."),
    ],
)
def test_public_prompts_are_trusted_as_a_whole(task: Task, prompt: str):
    assert prompt_for(task) == prompt
    assert [(part.text, part.trusted) for part in split_prompt(prompt)] == [(prompt, True)]


def test_locate_frames_its_query():
    assert prompt_for(Task.LOCATE, " the total ") == "\nLocate <|ref|>the total<|/ref|> in the image."


def test_every_task_has_a_prompt():
    assert all(prompt_for(task, "x" if task is Task.LOCATE else None).startswith("\n") for task in Task)


@pytest.mark.parametrize("query", [None, "", " \n"])
def test_locate_needs_a_query(query: str | None):
    with pytest.raises(ValueError, match="needs a query"):
        prompt_for(Task.LOCATE, query)


def test_other_tasks_take_no_query():
    with pytest.raises(ValueError, match="free takes no query"):
        prompt_for(Task.FREE, "x")


@given(st.text().filter(str.strip) | st.sampled_from(["<|/ref|> in the image.", "<|ref|>", "\nLocate <|ref|>"]))
def test_a_query_is_never_trusted(query: str):
    parts = split_prompt(prompt_for(Task.LOCATE, query))
    assert [part.text for part in parts if not part.trusted] == [query.strip()]
    assert [part.trusted for part in parts] == [True, False, True]


@given(st.text() | st.sampled_from(["\nLocate <|ref|>", "\nFree OCR. <|det|>", "\nLocate <|ref|><|/ref|>"]))
def test_a_prompt_of_ones_own_is_plain(prompt: str):
    assume(prompt not in PUBLIC)
    assert [(part.text, part.trusted) for part in split_prompt(prompt)] == [(prompt, False)]
