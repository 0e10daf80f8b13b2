import io
import json
import lzma
from pathlib import Path

import pytest
from PIL import ImageFont

from shared.deepseek_ocr.checkpoint import save_checkpoint
from tests.support.evaluation import write_set
from tests.support.tiny_model import tiny_model, tiny_tokenizer
from trainer.nano.corpus.corpus import Corpus
from trainer.nano.fonts.library import FontFace, FontLibrary, write_index

ENGLISH = (
    "The quick brown fox jumps over the lazy dog while seven wizards quietly mix black potions in the old kitchen.",
    "She sells fresh bread at the corner of Main Street every Saturday morning, and nobody has ever complained.",
    "A letter arrived on Tuesday; it said that the bridge would be closed for repairs until the end of the month.",
)
GERMAN = ("Der alte Mann ging langsam den Berg hinauf und dachte an die vielen Jahre, die vergangen waren.",)


@pytest.fixture(scope="session")
def fonts_dir(tmp_path_factory):
    """A library of one face: the one that comes with the imaging library."""
    folder = tmp_path_factory.mktemp("fonts")
    source = ImageFont.load_default(20).path
    assert isinstance(source, io.BytesIO)
    (folder / "default.ttf").write_bytes(source.getvalue())
    letters = "".join(chr(code) for code in range(33, 127))
    write_index(folder, [FontFace("default.ttf", "Default", "regular", "sans", letters)])
    return folder


@pytest.fixture
def library(fonts_dir):
    return FontLibrary(fonts_dir)


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_lines(folder, "en", ENGLISH)
    write_lines(folder, "de", GERMAN)
    write_lines(folder, "words-en", ("apple", "bridge", "candle", "dragon", "engine"))
    return folder


@pytest.fixture
def corpus(corpus_dir):
    return Corpus(corpus_dir)


def write_lines(folder: Path, name: str, lines: tuple[str, ...]) -> None:
    (folder / f"{name}.txt.xz").write_bytes(lzma.compress("".join(f"{line}\n" for line in lines).encode()))


@pytest.fixture
def evaluation_set(tmp_path):
    """Three pages with their texts."""
    pages = [("a.png", "line", "ab"), ("b.png", "line", "cd"), ("c.png", "page", "two\nlines")]
    return write_set(tmp_path / "held-out", pages)


@pytest.fixture
def checkpoint(tmp_path):
    """A model in miniature with its tokenizer, as a folder."""
    folder = tmp_path / "tiny"
    save_checkpoint(tiny_model(), folder, "int8")
    (folder / "tokenizer.json").write_text(json.dumps(tiny_tokenizer()._definition), encoding="utf-8")
    return folder
