import gzip
from pathlib import Path

import pytest

from trainer.nano.corpus.pack import collect_paragraphs, is_prose, language_of, paragraph_key, usable_parts
from trainer.nano.corpus.sources import manual_paragraphs, markup_paragraphs, pod_paragraphs, read_paragraphs
from trainer.nano.packages import SourcePackage, read_package_list


def test_markup_loses_tags_and_code_and_keeps_entities():
    text = "<html><head><title>x</title></head><p>Fish &amp; <b>chips</b></p><pre>code()</pre><p>Tea</p></html>"
    assert [part.strip() for part in markup_paragraphs(text) if part.strip()] == ["Fish & chips", "Tea"]


def test_manual_pages_lose_fonts_and_macros():
    text = '.TH LS 1\n.SH NAME\nls \\- list \\fBall\\fP files\n.PP\nUse\n.B \\-l\nfor "long" lines.\n'
    parts = [part.strip() for part in manual_paragraphs(text)]
    assert 'Use -l for "long" lines.' in parts
    assert any(part.endswith("ls - list all files") for part in parts)


def test_pod_loses_markup_and_code_blocks():
    parts = list(pod_paragraphs("=head1 NAME\n\nSee L<perlfunc|the manual> and C<print>.\n\n    my $code;\n"))
    assert parts[:2] == ["NAME", "See perlfunc and print."]
    assert len(parts) == 2


def test_compressed_pages_are_read(tmp_path):
    path = tmp_path / "man" / "man1" / "x.1.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(b".SH A\nSome words here.\n"))
    assert any("Some words here." in part for part in read_paragraphs(path))


def test_changelogs_are_not_read(tmp_path):
    path = tmp_path / "changelog.txt"
    path.write_text("A paragraph of words.")
    assert list(read_paragraphs(path)) == []


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ("usr/share/locale/de/LC_MESSAGES/x.mo", "de"),
        ("usr/share/help/pt_BR/guide/index.page", "pt"),
        ("usr/share/locale/nn/LC_MESSAGES/x.mo", "nb"),
        ("usr/share/doc/x/html/fr-FR/a.html", "fr"),
        ("usr/share/doc/x/manual.es.html", "es"),
        ("usr/share/doc/x/plain.txt", "en"),
    ],
)
def test_languages_are_told_by_paths(path, language):
    assert language_of(Path(path)) == language


def test_long_paragraphs_are_cut_between_sentences():
    sentence = "This is a perfectly ordinary sentence of words. "
    parts = list(usable_parts(sentence * 40))
    assert len(parts) > 2
    assert all(part.endswith(".") and len(part) <= 700 for part in parts)


@pytest.mark.parametrize(
    "text", ["%s of %d files were read", "{name} is not here today", "short", "Много слов по-русски здесь"]
)
def test_placeholders_scraps_and_other_scripts_are_dropped(text):
    assert list(usable_parts(text)) == []


def test_code_is_not_prose():
    assert not is_prose("x = 1; y[2] = {3}; (4) -> 5 != 6 || 7;")
    assert is_prose("A plain sentence, of course.")


def test_keys_ignore_case_and_punctuation():
    assert paragraph_key("Hello, world!") == paragraph_key("hello world")


def test_a_held_out_package_never_reaches_training(tmp_path):
    folders = {}
    for name, words in (("learn", "alpha"), ("keep", "omega")):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        lines = [f"Line number {'x' * index} speaks about {words} things." for index in range(1, 60)]
        (folders[name] / "a.txt").write_text("\n\n".join(lines))
    packages = [SourcePackage("learn", "text", "en"), SourcePackage("keep", "text-heldout", "en")]
    train, held_out = collect_paragraphs(packages, folders)
    assert train["en"]
    assert all("alpha" in line for line in train["en"])
    assert sum("omega" in line for line in held_out["en"]) > 30
    assert not set(train["en"]) & set(held_out["en"])


def test_the_committed_list_keeps_training_and_held_out_apart():
    packages = read_package_list()
    purposes = {
        purpose: {p.name for p in packages if p.purpose == purpose} for purpose in ("fonts", "text", "text-heldout")
    }
    assert len(purposes["fonts"]) > 100
    assert len(purposes["text-heldout"]) >= 3
    assert not purposes["text"] & purposes["text-heldout"]


def test_a_malformed_list_names_its_line(tmp_path):
    path = tmp_path / "packages.txt"
    path.write_text("# fine\nfonts - fonts-one # fine\nbooks en novel\n")
    with pytest.raises(ValueError, match="books en novel"):
        read_package_list(path)
