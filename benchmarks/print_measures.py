"""What `outcomes.py` measures without a model: coverage, rows and turns, on pages whose print is known.

A reader is imitated: it copies the page's text with some characters wrong, leaves parts out, or repeats a line for
ever. So the figures are those of the rules, not of a model.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.outcome_pages import Drawer
from benchmarks.print_pages import FULL_KINDS, REPEATING_KINDS, PrintedPage, draw, misread, share_of
from shared.contract.answer import AnswerTokens, FinishReason, Rewind, TokenJudge
from shared.contract.repetition import LoopRule
from shared.contract.rows import find_rows
from shared.deepseek_ocr.tokenizer import OcrTokenizer
from shared.images.accounting import account
from shared.images.ink import find_ink, ink_of, relief_of
from shared.images.orientation import TURNS, find_orientation
from shared.images.page_ink import InkLine

TOKENIZER = Path(__file__).resolve().parents[1] / "shared/nano/tokenizer.json"
MISREAD = (0.0, 0.03, 0.1)
"""Shares of wrong characters."""
PARTLY_READ_BELOW = 0.9
_MOST_TOKENS = 4096
_TRANSPOSES = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}


def coverage(drawer: Drawer, of_each: int) -> tuple[str, dict[str, Any]]:
    """Coverage stated for whole and for partly read pages, against what the reader copied."""
    errors: dict[str, list[float]] = defaultdict(list)
    alarms: dict[str, int] = defaultdict(int)
    places: list[float] = []
    spent_s = 0.0
    for page in draw(drawer, FULL_KINDS, of_each):
        ink = find_ink(page.image)
        for share in MISREAD:
            start_s = time.process_time()
            stated = account(misread(page.text, share, drawer.chance), ink.lines).coverage
            spent_s += time.process_time() - start_s
            errors[f"{page.kind}, all read, {share:.0%} wrong"].append(stated - 1)
            alarms[f"{page.kind}, all read, {share:.0%} wrong"] += stated < PARTLY_READ_BELOW
        kept = _part(drawer, page)
        true = share_of(kept, page.lines)
        found = account(misread("\n".join(line.text for line in kept), MISREAD[1], drawer.chance), ink.lines)
        name = f"{page.kind}, a part unread"
        errors[name].append(found.coverage - true)
        alarms[name] += found.coverage < PARTLY_READ_BELOW
        places.append(_overlap(page, kept, found.unread))
    rows = [
        f"| {name} | {len(of)} | {np.abs(of).mean():.3f} | {np.abs(of).max():.3f} | {alarms[name]} |"
        for name, of in errors.items()
    ]
    head = ["| pages | number | mean error | largest error | warned |", "| --- | ---: | ---: | ---: | ---: |"]
    whole = [name for name in errors if "all read" in name]
    parts = [name for name in errors if "unread" in name]
    clean = sum(len(errors[name]) for name in whole)
    return "\n".join([*head, *rows]), {
        "false_alarms": round(sum(alarms[name] for name in whole) / clean, 4),
        "pages_read_whole": clean,
        "pages_read_partly": sum(len(errors[name]) for name in parts),
        "mean_error_whole": round(float(np.mean(np.abs(np.concatenate([errors[name] for name in whole])))), 4),
        "mean_error_partly": round(float(np.mean(np.abs(np.concatenate([errors[name] for name in parts])))), 4),
        "unread_area_found": round(float(np.mean(places)), 4),
        "account_ms": round(1000 * spent_s / clean, 2),
    }


def _part(drawer: Drawer, page: PrintedPage) -> list[Any]:
    """Some of the page's lines: without one of its blocks, or up to a line."""
    blocks = sorted({line.block for line in page.lines})
    if len(blocks) > 1 and drawer.chance.random() < 0.5:
        dropped = blocks[int(drawer.chance.integers(len(blocks)))]
        kept = [line for line in page.lines if line.block != dropped]
        if share_of(kept, page.lines) < 0.95:
            return kept
    return page.lines[: max(1, int(len(page.lines) * drawer.chance.uniform(0.3, 0.85)))]


def _overlap(page: PrintedPage, kept: list[Any], unread: tuple[Any, ...]) -> float:
    """Share of the lines that were left out whose middle is in a box."""
    read = {id(line) for line in kept}
    left = [line.box_px for line in page.lines if id(line) not in read]
    inside = [
        any(x1 <= (a + c) / 2 <= x2 and y1 <= (b + d) / 2 <= y2 for x1, y1, x2, y2 in unread) for a, b, c, d in left
    ]
    return sum(inside) / max(len(inside), 1)


def rows(drawer: Drawer, of_each: int) -> tuple[str, dict[str, Any]]:
    """True rows that are kept, and false ones, of readers that copy the page and of readers that never stop."""
    tokenizer = OcrTokenizer.from_file(TOKENIZER)
    counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(6, int))
    for page in draw(drawer, REPEATING_KINDS | FULL_KINDS, of_each):
        lines = find_ink(page.image).lines
        texts = [line.text for line in page.lines]
        copied = _answer(tokenizer, texts, None, lines)
        loop = _longest_run(texts) if page.kind in REPEATING_KINDS else int(drawer.chance.integers(len(texts)))
        looped = _answer(tokenizer, texts, loop, lines)
        repeated = texts[loop]
        true = _run_at(texts, loop)
        kept = _most_in_a_row(looped, repeated)
        counts[page.kind] += [1, copied == texts, kept == true, min(kept, true), kept, true]
    table = ["| kind | pages | copied whole | loops cut right | rows kept that are true | true rows kept |"]
    table += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for kind, (pages, whole, right, both, kept, true) in counts.items():
        table.append(f"| {kind} | {pages} | {whole} | {right} | {both / max(kept, 1):.1%} | {both / true:.1%} |")
    pages, whole, right, both, kept, true = np.sum(list(counts.values()), axis=0)
    return "\n".join(table), {
        "pages": int(pages),
        "copied_whole": round(whole / pages, 4),
        "loops_cut_right": round(right / pages, 4),
        "precision": round(both / kept, 4),
        "recall": round(both / true, 4),
    }


def _longest_run(texts: list[str]) -> int:
    """The last of the longest run of equal lines; the last line if none are equal."""
    runs = [_run_at(texts, index) for index in range(len(texts))]
    return len(texts) - 1 - int(np.argmax(runs[::-1]))


def _run_at(texts: list[str], index: int) -> int:
    """Equal lines up to a line."""
    first = index
    while first and texts[first - 1] == texts[index]:
        first -= 1
    last = index
    while last + 1 < len(texts) and texts[last + 1] == texts[index]:
        last += 1
    return last - first + 1


def _most_in_a_row(texts: list[str], wanted: str) -> int:
    best = count = 0
    for text in texts:
        count = count + 1 if text == wanted else 0
        best = max(best, count)
    return best


def _answer(tokenizer: OcrTokenizer, texts: list[str], loop: int | None, lines: tuple[InkLine, ...]) -> list[str]:
    """What is kept of a reader that copies the lines, and at one of them repeats it until it is made to go on."""
    rule = LoopRule()
    judge = TokenJudge(tokenizer.eos_id, _MOST_TOKENS, rule)
    pieces = tokenizer.token_bytes
    answer = AnswerTokens(
        rule, lambda before, period: find_rows([pieces(id_) for id_ in before], [pieces(id_) for id_ in period], lines)
    )
    source = _reader(tokenizer, texts, loop)
    outcome: FinishReason | Rewind | None = None
    while not isinstance(outcome, FinishReason):
        token = next(source, tokenizer.eos_id)
        outcome = answer.push(token, -0.01, *judge.push(token))
        if isinstance(outcome, Rewind):
            judge.rewind(outcome.kept, outcome.forbidden)
            if outcome.forbidden is not None:
                # The reader goes on with what comes after the line.
                source = iter([])
    return [line for line in tokenizer.decode(list(answer.tokens)).split("\n") if line]


def _reader(tokenizer: OcrTokenizer, texts: list[str], loop: int | None) -> Iterator[int]:
    for index, text in enumerate(texts):
        yield from tokenizer.encode_plain(text + "\n")
        if index == loop:
            while True:
                yield from tokenizer.encode_plain(text + "\n")


def turns(drawer: Drawer, of_each: int, folder: Path | None) -> tuple[str, dict[str, Any]]:
    """How pages that are turned in the four ways are found, drawn ones and those of a folder."""
    pages = [(page.kind, page.image) for page in draw(drawer, FULL_KINDS | REPEATING_KINDS, of_each)]
    files = sorted(folder.rglob("*.png")) if folder else []
    pages += [("files", Image.open(file).convert("RGB")) for file in files]
    counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(4, int))
    spent_s: list[float] = []
    for kind, image in pages:
        for turn in TURNS:
            relief = relief_of(image.transpose(_TRANSPOSES[turn]) if turn else image)
            start_s = time.process_time()
            found = find_orientation(relief).turn_degrees
            spent_s.append(time.process_time() - start_s)
            is_right = found == -turn % 360
            counts[kind] += [not turn, not turn and is_right, bool(turn), bool(turn) and is_right]
    table = ["| kind | upright | left as they are | turned | found |", "| --- | ---: | ---: | ---: | ---: |"]
    table += [f"| {kind} | {a} | {b} | {c} | {d} |" for kind, (a, b, c, d) in counts.items()]
    upright, left, turned, found = np.sum(list(counts.values()), axis=0)
    return "\n".join(table), {
        "upright": int(upright),
        "upright_left": round(left / upright, 4),
        "turned": int(turned),
        "turned_found": round(found / turned, 4),
        "orientation_ms": round(1000 * float(np.median(spent_s)), 2),
    }


def costs(folder: Path, runs: int = 15) -> tuple[str, dict[str, Any]]:
    """What looking at pages costs, for files `NAME.png` with their text in `NAME.txt`."""
    table = [
        "| page | px | paper, ms | turn, ms | print, ms | coverage, ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    figures: dict[str, Any] = {}
    for file in sorted(folder.glob("*.png")):
        image, text = Image.open(file).convert("RGB"), file.with_suffix(".txt").read_text(encoding="utf-8")
        spent_ms = np.full((runs, 4), np.inf)
        for run in range(runs):
            times = [time.thread_time()]
            relief = relief_of(image)
            times.append(time.thread_time())
            find_orientation(relief)
            times.append(time.thread_time())
            lines = ink_of(relief).lines
            times.append(time.thread_time())
            account(text, lines)
            times.append(time.thread_time())
            spent_ms[run] = 1000 * np.diff(times)
        fastest = spent_ms.min(axis=0).round(1).tolist()
        table.append(f"| {file.name} | {image.width} x {image.height} | {' | '.join(map(str, fastest))} |")
        figures[file.stem] = dict(zip(("paper_ms", "turn_ms", "print_ms", "coverage_ms"), fastest, strict=True))
    return "\n".join(table), figures
