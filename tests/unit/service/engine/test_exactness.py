"""nano's texts from the engine are those of `generate`: alone, and in any company.

`make test` reads parts of the samples that ship, answers cut short. All of a set, whole answers:

    make test ARGS="tests/unit/service/engine/test_exactness.py --timeout=0 --evaluation-set data/nano-eval"
"""

import random

import pytest
from PIL import Image

from benchmarks.reading import (
    SAMPLES,
    exact_engine,
    prepared,
    reference_text,
    texts_alone,
    texts_in_company,
    true_pages,
)
from shared.deepseek_ocr.loading import load_checkpoint
from tests.support.nano import NANO, needs_nano

pytestmark = needs_nano

SHORT_ANSWER_TOKENS = 24
WHOLE_ANSWER_TOKENS = 2048
PARTS = (("block", (0, 0, 640, 200)), ("block", (0, 200, 640, 640)), ("invoice", (0, 0, 900, 320)))
"""Sample and box; the last has tiles."""


@pytest.fixture(scope="module")
def folder(request):
    return request.config.getoption("--evaluation-set")


@pytest.fixture(scope="module")
def max_new_tokens(folder):
    return WHOLE_ANSWER_TOKENS if folder else SHORT_ANSWER_TOKENS


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(NANO)


@pytest.fixture(scope="module")
def pages(folder, checkpoint):
    if folder:
        return [page.page for page in true_pages(folder, checkpoint.geometry)]
    parts = [Image.open(SAMPLES / f"sample-{name}.png").convert("RGB").crop(box) for name, box in PARTS]
    return [prepared(part, checkpoint.geometry) for part in parts]


@pytest.fixture(scope="module")
def expected(pages, checkpoint, max_new_tokens):
    return [reference_text(checkpoint, page, max_new_tokens) for page in pages]


@pytest.fixture(scope="module")
def engine(checkpoint, max_new_tokens):
    return exact_engine(checkpoint, 8, max_new_tokens)


def test_alone(engine, pages, expected, max_new_tokens):
    assert list(texts_alone(engine, pages, max_new_tokens)) == expected


@pytest.mark.parametrize("seed", range(2))
def test_in_random_company(engine, pages, expected, max_new_tokens, seed):
    assert texts_in_company(engine, pages, max_new_tokens, random.Random(seed)) == expected
