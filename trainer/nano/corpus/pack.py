"""Builds the packed corpus from documentation packages: cleaned, deduplicated, mixed by language, split.

The split is by paragraph hash (2 % held out) and by whole packages that training never sees.
"""

from __future__ import annotations

import hashlib
import logging
import lzma
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from trainer.nano.corpus.charset import clean_text
from trainer.nano.corpus.corpus import SUFFIX, WORDS_PREFIX
from trainer.nano.corpus.sources import read_catalogue, read_paragraphs
from trainer.nano.packages import SourcePackage, read_package_list, unpack_packages

logger = logging.getLogger(__name__)

# Bytes of paragraphs by language; English fills 70 % of about 33 MB.
BUDGETS: Final = {
    "en": 23_000_000, "de": 1_700_000, "fr": 1_700_000, "es": 1_500_000, "it": 1_300_000, "pt": 900_000, "nl": 700_000,
    "pl": 700_000, "cs": 600_000, "da": 300_000, "sv": 350_000, "nb": 150_000, "fi": 150_000, "hu": 200_000,
    "ro": 150_000, "ca": 150_000, "sk": 150_000, "sl": 100_000, "hr": 100_000, "tr": 150_000, "lt": 80_000,
    "lv": 80_000, "et": 80_000,
}  # fmt: skip
HELD_OUT_BUDGETS: Final = {"en": 900_000}
HELD_OUT_BUDGET_OTHERS: Final = 60_000
PACKAGE_CAP: Final = {"anarchism": 5_000_000, "dict-gcide": 1_500_000, "wesnoth-1.16-data": 4_000_000}
PACKAGE_CAP_OTHERS: Final = 2_300_000
WORDS_PER_LANGUAGE: Final = 12_000
HELD_OUT_SHARE: Final = 0.02
MAX_CHARACTERS: Final = 700
MIN_CHARACTERS: Final = 16

_LANGUAGE_IN_PATH: Final = re.compile(
    r"/(?:locale|help|html|man|doc/[^/]+|en|)/([a-z]{2})(?:[-_][A-Za-z]+)?(?:\.UTF-8)?/"
)
_LANGUAGE_IN_NAME: Final = re.compile(r"[._]([a-z]{2})(?:[-_][a-zA-Z]{2})?\.(?:html|txt|gz|docbook)")
_PLACEHOLDER: Final = re.compile(r"%\d*\$?[a-z]|\{[^}]*\}|\$\w+|<[^>]*>|\\|&\w+;|\|\|")
_EDITION_MARK: Final = re.compile(r"\[(?:1913 Webster|PJC|Webster 1913 Suppl\.)\]")
_SENTENCE_END: Final = re.compile(r"(?<=[.!?…:;])\s+")


def build_corpus(out_dir: Path, cache_dir: Path) -> dict[str, int]:
    """Pack the listed packages' texts into `corpus/` and `corpus-heldout/`.

    `cache_dir` holds downloaded and unpacked packages. Returns bytes of paragraphs by folder and language, unpacked.
    """
    packages = read_package_list()
    texts = [package for package in packages if package.purpose in {"text", "text-heldout"}]
    words = [package for package in packages if package.purpose == "words"]
    folders = unpack_packages(texts + words, cache_dir)
    train, held_out = collect_paragraphs(texts, folders)
    vocabulary = collect_words(words, folders)
    counts = {}
    for name, paragraphs in (("corpus", train), ("corpus-heldout", held_out)):
        write_packed(out_dir / name, paragraphs, vocabulary)
        for language, lines in paragraphs.items():
            counts[f"{name}/{language}"] = sum(len(line.encode()) + 1 for line in lines)
    return counts


def collect_paragraphs(
    packages: list[SourcePackage], folders: dict[str, Path]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Read, clean, deduplicate and split paragraphs, and cut them to the budgets.

    `folders` are the unpacked packages by name. Returns paragraphs by language for training, and held-out ones, in a
    fixed shuffled order.
    """
    train: dict[str, list[tuple[str, str]]] = defaultdict(list)
    held_out: dict[str, list[tuple[str, str]]] = defaultdict(list)
    seen: set[str] = set()
    for package in sorted(packages, key=lambda each: each.purpose == "text-heldout"):
        used: dict[str, int] = defaultdict(int)
        cap = PACKAGE_CAP.get(package.name, PACKAGE_CAP_OTHERS)
        unique: dict[str, tuple[str, str]] = {}
        for language, paragraph in package_paragraphs(package, folders[package.name]):
            key = paragraph_key(paragraph)
            if language in BUDGETS and key not in seen and key not in unique:
                unique[key] = (language, paragraph)
        seen.update(unique)
        for key in sorted(unique):
            language, paragraph = unique[key]
            if used[language] < cap:
                used[language] += len(paragraph.encode())
                apart = package.purpose == "text-heldout" or int(key[:8], 16) < HELD_OUT_SHARE * 2**32
                (held_out if apart else train)[language].append((key, paragraph))
        logger.info("%s: %s", package.name, dict(used))
    return (
        {language: _cut(rows, BUDGETS[language]) for language, rows in sorted(train.items())},
        {
            language: _cut(rows, HELD_OUT_BUDGETS.get(language, HELD_OUT_BUDGET_OTHERS))
            for language, rows in sorted(held_out.items())
        },
    )


def package_paragraphs(package: SourcePackage, folder: Path) -> Iterator[tuple[str, str]]:
    """Read languages and cleaned paragraphs of an unpacked package."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        language = package.language if package.language != "*" else language_of(path.relative_to(folder))
        if path.suffix == ".mo":
            for original, translation in read_catalogue(path).items():
                yield from (("en", part) for part in usable_parts(original))
                yield from ((language, part) for part in usable_parts(translation))
            continue
        for raw in read_paragraphs(path):
            yield from ((language, part) for part in usable_parts(raw))


def language_of(path: Path) -> str:
    """Two letters of a file's language by its path in the package; English by default."""
    match = _LANGUAGE_IN_PATH.search("/" + path.as_posix()) or _LANGUAGE_IN_NAME.search(path.name)
    language = match[1] if match else "en"
    return {"no": "nb", "nn": "nb"}.get(language, language)


def usable_parts(raw: str) -> Iterator[str]:
    """Clean a raw paragraph and cut it into pieces of at most 700 characters.

    Yields nothing for code, placeholders and other scripts.
    """
    if len(raw) < MIN_CHARACTERS or _PLACEHOLDER.search(raw):
        return
    text = clean_text(_EDITION_MARK.sub("", raw))
    if text is None:
        return
    piece = ""
    for sentence in _SENTENCE_END.split(text) if len(text) > MAX_CHARACTERS else [text]:
        if piece and len(piece) + len(sentence) > MAX_CHARACTERS:
            if is_prose(piece):
                yield piece
            piece = ""
        piece = f"{piece} {sentence}".strip()
    if is_prose(piece):
        yield piece


def is_prose(text: str) -> bool:
    """Whether a cleaned text has enough words to be prose, not code, options or noise."""
    if not MIN_CHARACTERS <= len(text) <= 2 * MAX_CHARACTERS:
        return False
    words = text.split()
    letters = sum(character.isalpha() for character in text)
    longest = max(len(word) for word in words)
    return len(words) >= 3 and longest <= 40 and letters >= 0.68 * len(text) and "__" not in text


def paragraph_key(text: str) -> str:
    """Hash of a paragraph's first 90 letters, without case, by which paragraphs are deduplicated, split and ordered."""
    letters = "".join(character for character in text.lower() if character.isalpha())[:90]
    return hashlib.blake2b(letters.encode(), digest_size=12).hexdigest()


def collect_words(packages: list[SourcePackage], folders: dict[str, Path]) -> dict[str, list[str]]:
    """Read a fixed sample of words by language: dictionaries, and names of countries, languages and currencies."""
    found: dict[str, set[str]] = defaultdict(set)
    for package in packages:
        for path in sorted(folders[package.name].rglob("*")):
            if not path.is_file() or path.is_symlink():
                continue
            if path.suffix == ".mo":
                language = language_of(path.relative_to(folders[package.name]))
                found[language].update(_clean_words(read_catalogue(path).values()))
            elif path.parent.name == "dict" and path.suffix not in {".gz", ".hash", ".aff"}:
                raw = path.read_bytes()
                text = raw.decode("utf-8", errors="replace")
                text = text if "\ufffd" not in text else raw.decode("latin-1")
                found[package.language].update(_clean_words(text.splitlines()))
    return {
        language: sorted(sorted(words, key=paragraph_key_of_word)[:WORDS_PER_LANGUAGE])
        for language, words in sorted(found.items())
        if language in BUDGETS
    }


def paragraph_key_of_word(word: str) -> str:
    """Hash by which words are sampled."""
    return hashlib.blake2b(word.encode(), digest_size=8).hexdigest()


def write_packed(folder: Path, paragraphs: dict[str, list[str]], words: dict[str, list[str]]) -> None:
    """Write a packed folder, replacing it; words are the same in training and evaluation."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = {language: lines for language, lines in paragraphs.items() if lines}
    files |= {WORDS_PREFIX + language: lines for language, lines in words.items() if lines}
    for name, lines in files.items():
        data = "".join(f"{line}\n" for line in lines).encode()
        (partial / f"{name}{SUFFIX}").write_bytes(lzma.compress(data, preset=6))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _clean_words(candidates: Iterable[str]) -> Iterator[str]:
    for candidate in candidates:
        word = clean_text(candidate)
        if word and 2 <= len(word) <= 28 and not _PLACEHOLDER.search(word):
            yield word


def _cut(rows: list[tuple[str, str]], budget: int) -> list[str]:
    kept, used = [], 0
    for _, paragraph in sorted(rows):
        if used >= budget:
            break
        kept.append(paragraph)
        used += len(paragraph.encode()) + 1
    return kept
