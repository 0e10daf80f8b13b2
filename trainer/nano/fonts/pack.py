"""Chooses, checks and packs the faces that nano learns from; needs fontTools and the font packages' files.

Families, never single files, are split: a family held out for evaluation has no face in training.
"""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from trainer.nano.corpus.charset import REQUIRED, SUPPORTED
from trainer.nano.fonts.library import FontFace, write_index
from trainer.nano.packages import read_package_list, unpack_packages

logger = logging.getLogger(__name__)

# Evaluation only. Designs without a close copy among the training families, of every kind.
HELD_OUT_FAMILIES: Final = frozenset(
    {
        "Charis SIL", "Caladea", "Vollkorn", "Linden Hill", "PT Serif", "PT Serif Caption", "Prociono",
        "Cabin", "Clear Sans", "Lato", "Carlito", "B612", "Karla", "Karmilla", "Tuffy", "Dosis",
        "JetBrains Mono", "Fira Code", "B612 Mono", "PT Mono",
        "Courier Prime", "Courier Prime Code", "Courier Prime Sans", "Tlwg Typewriter",
        "Comic Neue", "femkeklaver",
    }
)  # fmt: skip
# Symbols, capitals only, ornament, near copies of another family under a new name, or too unusual.
_EXCLUDED_FAMILY: Final = re.compile(
    r"Caps|Smallcaps|Math|Symbol|Keyboard|Keyfont|Titling|Initial|Monoisome|D050000L|Minus|Pro Math|Unslanted|Dunhill"
    r"|Uralic|IndUni|^Arimo|^Tinos|^Cousine|^Aerial|^Tymes|^Verand?a|^Nimbus|^C059|^P052|^URW|^Z003|^FreeS"
    r"|^sans$|unifur|^CMU (Serif|Sans|Typewriter Text$|Classical)|Triod|Infofont Z|PCfont Z|Signfont Z|STIXGeneral"
    r"|Half Italic|Upright|Dyslexic(Alta|Mono)|Display O$|Style Std|No3|Semi-Condensed|Andika New|Irianis ADF Style"
    r"|Fantasma|Kristi|Klaudia|Berenika|Museum|Penguin|Delphine|DkgHand|StayPuft|Solothurn|Isabella|Cupola|^Steve|okolaks"
    r"|Mono Prop Light|Mono Light Cond|Galatia|Romande ADF Script"
)
_EXCLUDED_STYLE: Final = re.compile(
    r"thin|hairline|extra-? ?light|ultra-? ?light|outline|shadow|display|deck|poster", re.I
)
_EXCLUDED_FILE: Final = re.compile(r"noto(?!sans-|serif-|sansmono-|mono-)|-?(sc|swash|initials?)\.", re.I)
_TYPEWRITER: Final = re.compile(r"typewriter|courier|cursor|typist|typo$|prestige|compagnon|mono slanted|3270", re.I)
_HAND: Final = re.compile(
    r"comic|hand|breip|dancing|kaushan|lobster|leckerli|femke|purisa|humor|steve|delphine|domestic|chorus|caliban"
    r"|rufscript|abogado|tomson|staypuft|summersby|isabella|bwht|ecolier|cupola|script|okolaks|engadget|solothurn",
    re.I,
)
PROBE_PX: Final = 96


@dataclass(frozen=True, slots=True)
class Candidate:
    """A font file that might be packed.

    Attributes:
        path: the file.
        family: typographic family.
        style: regular, bold, italic or bold-italic.
        distance: how far its weight is from the style's usual one; smaller is preferred.
        fixed_pitch: every glyph is as wide as the next.
        characters: supported characters it maps.
    """

    path: Path
    family: str
    style: str
    distance: int
    fixed_pitch: bool
    characters: str


def build_fonts(out_dir: Path, cache_dir: Path) -> dict[str, int]:
    """Pack the listed packages' usable faces into `fonts/` and `fonts-heldout/`, each with an index.

    `cache_dir` holds downloaded and unpacked packages. Returns faces and families of both folders by name.
    """
    packages = [package for package in read_package_list() if package.purpose == "fonts"]
    roots = list(unpack_packages(packages, cache_dir).values())
    chosen = choose_faces(roots)
    counts = {}
    for name, held_out in (("fonts", False), ("fonts-heldout", True)):
        part = [candidate for candidate in chosen if (candidate.family in HELD_OUT_FAMILIES) is held_out]
        faces = pack_faces(part, out_dir / name)
        counts[f"{name}_faces"] = len(faces)
        counts[f"{name}_families"] = len({face.family for face in faces})
    return counts


def choose_faces(roots: list[Path]) -> list[Candidate]:
    """Choose at most four faces of each family: regular, bold, italic, bold italic; glyphs are checked later."""
    paths = sorted({path for root in roots for path in root.rglob("*") if path.suffix.lower() in {".ttf", ".otf"}})
    best: dict[tuple[str, str], Candidate] = {}
    for path in paths:
        if path.is_symlink() or _EXCLUDED_FILE.search(path.name):
            continue
        candidate = describe_file(path)
        if candidate is None:
            continue
        key = (candidate.family, candidate.style)
        rival = best.get(key)
        if rival is None or (candidate.distance, path.suffix) < (rival.distance, rival.path.suffix):
            best[key] = candidate
    return [best[key] for key in sorted(best)]


def describe_file(path: Path) -> Candidate | None:
    """Read names, weight and coverage of a TrueType or OpenType file; None if it cannot be used."""
    from fontTools.ttLib import TTFont, TTLibError  # type: ignore[import-not-found, import-untyped, unused-ignore]

    try:
        font = TTFont(path, lazy=True)
        names, cmap, os2, post = font["name"], font.getBestCmap() or {}, font["OS/2"], font["post"]
    except (TTLibError, KeyError) as problem:
        logger.info("%s is left out: %s", path.name, problem)
        return None
    family = " ".join(str(names.getDebugName(16) or names.getDebugName(1) or "").split())
    style_name = str(names.getDebugName(17) or names.getDebugName(2) or "")
    characters = "".join(sorted(character for character in SUPPORTED if ord(character) in cmap))
    if not family or not REQUIRED.issubset(characters):
        return None
    if _EXCLUDED_FAMILY.search(family) or _EXCLUDED_STYLE.search(f"{family} {style_name}"):
        return None
    if re.search(r"cond|narrow|\bcn\b|ext\b", style_name, re.I):
        family = f"{family} Condensed" if not re.search(r"ext\b", style_name, re.I) else f"{family} Extended"
    style, distance = _style_of(style_name, int(os2.usWeightClass), float(post.italicAngle))
    return Candidate(path, family, style, distance, bool(post.isFixedPitch) or _is_fixed(font, cmap), characters)


def _style_of(name: str, weight: int, italic_angle: float) -> tuple[str, int]:
    bold = bool(re.search(r"bold|black|heavy|demi", name, re.I)) or weight >= 650
    italic = bool(re.search(r"italic|oblique|slanted", name, re.I)) or abs(italic_angle) > 1.0
    wanted = 700 if bold else 400
    distance = abs(weight - wanted) + (100 if re.search(r"semi|demi|light|medium|black|heavy|extra", name, re.I) else 0)
    # Optical sizes: the one drawn for running text.
    distance += 0 if re.search(r"\b1[02]\b", name) or not re.search(r"\d", name) else 50
    if bold:
        return ("bold-italic" if italic else "bold"), distance
    return ("italic" if italic else "regular"), distance


def _is_fixed(font: Any, cmap: dict[int, str]) -> bool:
    widths = {font["hmtx"][cmap[ord(character)]][0] for character in "iImW.0"}
    return len(widths) == 1


def pack_faces(candidates: list[Candidate], folder: Path) -> list[FontFace]:
    """Subset, check and index faces into a folder, which is replaced; returns those that passed."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    kinds = _family_kinds(candidates)
    faces = []
    for candidate in candidates:
        name = re.sub(r"[^a-z0-9]+", "-", f"{candidate.family} {candidate.style}".lower()).strip("-")
        target = partial / f"{name}{candidate.path.suffix.lower()}"
        subset_face(candidate.path, target)
        characters, problem = check_glyphs(target, candidate.characters)
        if problem:
            logger.info("%s is left out: %s", candidate.path.name, problem)
            target.unlink()
            continue
        faces.append(FontFace(target.name, candidate.family, candidate.style, kinds[candidate.family], characters))
    write_index(partial, faces)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return faces


def subset_face(source: Path, target: Path) -> None:
    """Write a subset of a face: supported characters, kerning and common ligatures."""
    from fontTools import subset  # type: ignore[import-not-found, import-untyped, unused-ignore]

    options = subset.Options()
    options.layout_features = ["kern", "liga", "ccmp", "locl", "mark"]
    options.hinting = False
    options.notdef_outline = True
    options.drop_tables += [
        "DSIG",
        "FFTM",
        "Silf",
        "Glat",
        "Gloc",
        "Sill",
        "Feat",
        "PfEd",
        "TeX ",
        "BASE",
        "JSTF",
        "MATH",
    ]
    options.ignore_missing_unicodes = True
    font = subset.load_font(str(source), options, dontLoadGlyphNames=True)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=[ord(character) for character in SUPPORTED])
    subsetter.subset(font)
    subset.save_font(font, str(target), options)


def check_glyphs(path: Path, characters: str) -> tuple[str, str]:
    """Check a face's glyphs for empty ones, boxes, missing lower case and hairlines.

    Returns the characters that it really draws, and what is wrong with the face ("" if nothing is).
    """
    try:
        font = ImageFont.truetype(str(path), PROBE_PX, layout_engine=ImageFont.Layout.BASIC)
        inks = {character: glyph_ink(font, character) for character in characters if character != " "}
    except OSError as problem:
        return "", f"cannot be drawn ({problem})"
    box = glyph_ink(font, "\U0010fffd")
    drawn = "".join(character for character, ink in inks.items() if ink.size and not _same(ink, box))
    if not REQUIRED.issubset(drawn):
        return drawn, f"draws nothing for {''.join(sorted(REQUIRED - set(drawn)))[:20]!r}"
    return drawn, _oddity(inks)


def _oddity(inks: dict[str, npt.NDArray[np.float32]]) -> str:
    """What makes a face unusable; "" if nothing does."""
    stem = inks["l"].sum() / 255 / inks["l"].shape[0] / PROBE_PX
    checks = {
        "its lower case is its upper case": sum(
            _alike(inks[letter], inks[letter.upper()]) > 0.93 for letter in "abdeghnqrt"
        )
        >= 4,
        "its lower case is as high as its upper case": not 0.3 < inks["x"].shape[0] / inks["X"].shape[0] < 0.93,
        f"its stems are {stem:.3f} em wide": stem < 0.028,
        "its letters are far too small or too large": min(inks["e"].shape) < PROBE_PX * 0.2
        or inks["H"].shape[0] > PROBE_PX * 1.1,
    }
    return next((problem for problem, is_so in checks.items() if is_so), "")


def glyph_ink(font: ImageFont.FreeTypeFont, character: str) -> npt.NDArray[np.float32]:
    """Ink `[height, width]` of a glyph, 0 to 255, cropped; of size 0 if nothing is drawn."""
    canvas = Image.new("L", (PROBE_PX * 4, PROBE_PX * 4), 0)
    ImageDraw.Draw(canvas).text((PROBE_PX, PROBE_PX), character, font=font, fill=255)
    box = canvas.getbbox()
    return np.asarray(canvas.crop(box) if box else np.zeros((0, 0)), dtype=np.float32)


def _same(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> bool:
    return first.shape == second.shape and bool(np.array_equal(first, second))


def _alike(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> float:
    def scaled(ink: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.asarray(Image.fromarray(ink).resize((24, 24), Image.Resampling.BOX), dtype=np.float32).ravel()

    return float(np.corrcoef(scaled(first), scaled(second))[0, 1])


def _family_kinds(candidates: list[Candidate]) -> dict[str, str]:
    kinds: dict[str, str] = {}
    for candidate in sorted(candidates, key=lambda each: (each.family, each.style != "regular", each.style)):
        if candidate.family not in kinds:
            kinds[candidate.family] = _kind_of(candidate)
    return kinds


def _kind_of(candidate: Candidate) -> str:
    if _TYPEWRITER.search(candidate.family):
        return "typewriter"
    if _HAND.search(candidate.family):
        return "hand"
    if candidate.fixed_pitch:
        return "mono"
    font = ImageFont.truetype(str(candidate.path), PROBE_PX, layout_engine=ImageFont.Layout.BASIC)
    ink = glyph_ink(font, "n") > 127
    # A serif widens the left stem's foot.
    left = ink[:, : ink.shape[1] // 2]
    foot, stem = left[-4:-1].sum(axis=1).mean(), left[ink.shape[0] // 2 : -12].sum(axis=1).mean()
    return "serif" if foot > 1.35 * stem else "sans"
