import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shared.contract.prompts import MAX_QUERY_CHARS, PromptSet, Task, prompt_for, recognise, split_prompt, tasks_of

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


def test_unlimited_ocr_is_asked_as_it_was_trained():
    assert tasks_of(PromptSet.UNLIMITED) == (Task.FREE, Task.MARKDOWN, Task.OCR)
    for task in tasks_of(PromptSet.UNLIMITED):
        assert prompt_for(task, prompts=PromptSet.UNLIMITED) == "document parsing."
        assert prompt_for(task, prompts=PromptSet.UNLIMITED, is_together=True) == "Multi page parsing."
    assert recognise("Document parsing.") == (Task.MARKDOWN, None)
    with pytest.raises(ValueError, match="not trained for the task figure"):
        prompt_for(Task.FIGURE, prompts=PromptSet.UNLIMITED)
    with pytest.raises(ValueError, match="of several pages"):
        prompt_for(Task.FREE, is_together=True)
    with pytest.raises(ValueError, match="takes no query"):
        prompt_for(Task.FREE, "x", PromptSet.UNLIMITED)


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


@pytest.mark.parametrize("task", [task for task in Task if task is not Task.LOCATE])
def test_a_task_is_recognised_by_its_prompt_and_its_name(task: Task):
    prompt = prompt_for(task)
    bare = prompt.replace("<|grounding|>", "").strip()
    for text in (prompt, f"<image>{prompt}", bare, bare.rstrip("."), bare.upper(), f"  {task}\n", str(task).title()):
        assert recognise(text) == (task, None)


def test_locate_is_recognised_with_its_query_as_it_was_written():
    for text in (
        prompt_for(Task.LOCATE, "the Total in EUR"),
        "Locate the Total in EUR in the image.",
        "<image>\nLOCATE  the Total in EUR  in the image",
    ):
        assert recognise(text) == (Task.LOCATE, "the Total in EUR")


@given(st.text(min_size=1, max_size=20).map(lambda text: " ".join(text.split())).filter(bool))
def test_the_prompt_of_a_query_gives_it_back(query: str):
    assume("<" not in query)
    assert recognise(prompt_for(Task.LOCATE, query)) == (Task.LOCATE, query)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Read this page",
        "locate",
        "Locate in the image",
        "Free OCR, please",
        "markdown " * 500,
        f"Locate {'x' * (MAX_QUERY_CHARS + 1)} in the image.",
    ],
)
def test_other_text_is_not_recognised(text: str):
    assert recognise(text) is None
