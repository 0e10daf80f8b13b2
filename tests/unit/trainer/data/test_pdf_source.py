"""Born-digital PDFs as a source: what the pages say, and every reason not to believe a text layer."""

from __future__ import annotations

import inspect
import io
import re

import numpy as np
import pikepdf
import pypdfium2 as pdfium  # type: ignore[import-untyped] # ships no types
import pytest
from PIL import Image

from tests.support.page_sources import drawn
from trainer.cli import main
from trainer.data.errors import RowCode
from trainer.data.prepare.manifest import load_manifest
from trainer.data.sources.columns import Columns
from trainer.data.sources.pdf import REFUSALS, clean_word
from trainer.data.sources.rejected_rows import RejectedRows
from trainer.data.sources.resolve import SourceOptions, open_source
from trainer.data.sources.samples import read_samples
from trainer.nano.pdf import text

LINES = [f"line {number} of a page that was never on paper" for number in range(6)]


def content(lines, *, x=50, top=780, size=12, mode=0):
    shown = [f"BT /F1 {size} Tf {mode} Tr {x} {top - 20 * n} Td ({line}) Tj ET" for n, line in enumerate(lines)]
    return "\n".join(shown)


def write_pdf(path, *pages, picture=None, password="", encoding="/WinAnsiEncoding", to_unicode=None):
    """A PDF of content streams, set in Helvetica; a picture may be shown as `/P Do`."""
    with pikepdf.new() as pdf:
        font = pikepdf.Dictionary(
            Type=pikepdf.Name.Font, Subtype=pikepdf.Name.Type1, BaseFont=pikepdf.Name.Helvetica,
            Encoding=pikepdf.Name(encoding),
        )  # fmt: skip
        if to_unicode:
            font.ToUnicode = pdf.make_stream(to_unicode.encode())
        resources = pikepdf.Dictionary(Font=pikepdf.Dictionary(F1=font))
        if picture is not None:
            image = pdf.make_stream(picture.convert("L").tobytes())
            image.update(
                {
                    "/Type": pikepdf.Name.XObject, "/Subtype": pikepdf.Name.Image, "/Width": picture.width,
                    "/Height": picture.height, "/ColorSpace": pikepdf.Name.DeviceGray, "/BitsPerComponent": 8,
                }
            )  # fmt: skip
            resources.XObject = pikepdf.Dictionary(P=image)
        for page in pages:
            pdf.add_blank_page(page_size=(595, 842))
            pdf.pages[-1].Contents = pdf.make_stream(page.encode("cp1252"))
            pdf.pages[-1].Resources = resources
        path.parent.mkdir(parents=True, exist_ok=True)
        pdf.save(path, encryption=pikepdf.Encryption(owner=password, user=password) if password else False)
    return path


def samples_of(path, **options):
    rejected = RejectedRows()
    return list(read_samples(open_source(str(path), SourceOptions(**options)), Columns(), rejected)), rejected.broken


def test_pages_are_rendered_and_say_what_they_show(tmp_path):
    other = [line.replace("page", "sheet") for line in LINES]
    path = write_pdf(tmp_path / "a.pdf", content(LINES), content(other))
    samples, broken = samples_of(path)
    assert broken == []
    assert [(sample.name, sample.text) for sample in samples] == [
        ("a.pdf page 1", "\n".join(LINES)), ("a.pdf page 2", "\n".join(other)),
    ]  # fmt: skip
    assert (samples[0].images[0].width_px, samples[0].images[0].height_px) == (1240, 1755)
    shown = np.asarray(Image.open(io.BytesIO(samples[0].images[0].data)).convert("L"))
    assert shown[: 1754 // 5].min() < 60
    assert shown[1754 // 2 :].min() == 255
    assert samples_of(path, dpi=72)[0][0].images[0].width_px == 595


def test_every_refusal_of_a_page_has_words_for_people():
    words = set(re.findall(r'RefusedPageError\("([^"]+)"', inspect.getsource(text)))
    assert len(words) > 8
    assert words == set(REFUSALS)


def test_a_sheet_that_is_too_large_is_refused_before_it_is_drawn(tmp_path, monkeypatch):
    path = write_pdf(tmp_path / "a.pdf", content(LINES))
    with pikepdf.open(path, allow_overwriting_input=True) as pdf:
        pdf.add_blank_page(page_size=(14400, 14400))
        pdf.save(path)
    drawn_pages = []
    render = pdfium.PdfPage.render
    monkeypatch.setattr(
        pdfium.PdfPage, "render", lambda page, **how: (drawn_pages.append(page), render(page, **how))[1]
    )
    samples, broken = samples_of(path)
    assert [sample.name for sample in samples] == ["a.pdf page 1"]
    assert [(row.name, row.code) for row in broken] == [("a.pdf page 2", RowCode.IMAGE_TOO_LARGE)]
    assert "30000 x 30000" in broken[0].reason
    assert len(drawn_pages) == 1


def test_letters_beyond_ascii_and_leaders_are_kept(tmp_path):
    lines = ["Müller & Söhne: Straße 12, Übergröße für 5 €", "Kapitel eins ............ 12", *LINES]
    samples, broken = samples_of(write_pdf(tmp_path / "a.pdf", content(lines)))
    assert broken == []
    assert samples[0].text.split("\n")[:2] == lines[:2]


def unreadable(tmp_path, name):
    """PDFs of one page whose text layer cannot be believed."""
    noise = Image.effect_noise((200, 280), 40)
    page = content(LINES)
    mapped = "1 begincodespacerange <00> <FF> endcodespacerange 1 beginbfrange <00> <FF> <E000> endbfrange"
    return {
        "scan": lambda path: write_pdf(path, f"q 595 0 0 842 0 0 cm /P Do Q {content(LINES, mode=3)}", picture=noise),
        "no text": lambda path: write_pdf(path, "0 0 m 100 100 l S"),
        "hidden text": lambda path: write_pdf(path, f"{page}\n{content(['not to be seen'], top=300, mode=3)}"),
        "turned": lambda path: write_pdf(path, f"q 0 1 -1 0 595 0 cm {page} Q"),
        "private": lambda path: write_pdf(path, page, to_unicode=mapped),
        "print without text": lambda path: write_pdf(
            path, f"{page} q 500 0 0 330 40 100 cm /P Do Q",
            picture=Image.fromarray(np.vstack([np.asarray(drawn(f"{n} printed in a picture of text", (400, 30)))
                                               for n in range(8)])),
        ),
    }[name](tmp_path / "a.pdf")  # fmt: skip


@pytest.mark.parametrize("name", ["scan", "no text", "hidden text", "turned", "private", "print without text"])
def test_a_text_layer_that_is_not_what_the_page_shows_is_refused(tmp_path, name):
    samples, broken = samples_of(unreadable(tmp_path, name))
    assert [sample.text for sample in samples] == []
    assert [row.code for row in broken] == [RowCode.TEXT_UNTRUSTED]


def test_files_that_cannot_be_opened_are_one_row_each(tmp_path):
    write_pdf(tmp_path / "ok.pdf", content(LINES))
    write_pdf(tmp_path / "locked.pdf", content(LINES), password="secret")  # pragma: allowlist secret
    (tmp_path / "torn.pdf").write_bytes(b"%PDF-1.4\nnothing")
    whole = write_pdf(tmp_path / "pageless.pdf", content(LINES)).read_bytes()
    (tmp_path / "pageless.pdf").write_bytes(whole.replace(b"/Pages", b"/Sages"))
    (tmp_path / "outside.pdf").symlink_to(write_pdf(tmp_path.parent / "outside.pdf", content(LINES)))
    samples, broken = samples_of(tmp_path)
    assert [sample.name for sample in samples] == ["ok.pdf page 1"]
    assert {row.name: row.code for row in broken} == {
        "locked.pdf": RowCode.ROW_UNREADABLE, "torn.pdf": RowCode.ROW_UNREADABLE,
        "pageless.pdf": RowCode.ROW_UNREADABLE, "outside.pdf": RowCode.IMAGE_OUTSIDE,
    }  # fmt: skip
    assert [row.name for row in broken if "password" in row.reason] == ["locked.pdf"]


def test_a_folder_of_pdfs_becomes_a_set(tmp_path, capsys):
    for name in ("train/a", "test/b"):
        pages = [content([f"{name} page {n}, {line}" for line in LINES]) for n in range(2)]
        write_pdf(tmp_path / "in" / f"{name}.pdf", *pages)
    (tmp_path / "in" / "notes.docx").write_bytes(b"x")
    assert main(["prepare", str(tmp_path / "in"), "--dpi", "100", "--out", str(tmp_path / "set")]) == 0
    assert "passed over: 1 .docx files" in capsys.readouterr().out
    manifest = load_manifest(tmp_path / "set")
    assert {name: split["num_samples"] for name, split in manifest["splits"].items()} == {"train": 2, "test": 2}


def test_words_with_characters_of_no_meaning_are_not_cleaned_but_refused():
    assert clean_word("Mu\u0308ller") == "Müller"
    for bad in ("a\ue000", "a\ufffd", "a\u200bb", "a\x01"):
        assert clean_word(bad) is None
