"""`prepare`: reads a source once and writes a checked set for training.

The order: rows in steps, each step converted, split, written and committed; then the checks of the whole set;
then card and manifest; then the rename. A run that was killed continues after its last finished step.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from trainer.data.errors import DataCode, DataError, RowCode
from trainer.data.likeness import LikenessRegister, PageLikeness
from trainer.data.prepare.card import write_card
from trainer.data.prepare.conversion import Converter, Outcome, PreparedSample, convert_rows
from trainer.data.prepare.manifest import FORMAT_VERSION, MANIFEST_NAME, load_manifest
from trainer.data.prepare.output import OutputFolder, write_file, writing_to
from trainer.data.prepare.request import PrepareRequest, Summary
from trainer.data.prepare.shards import ShardFile, ShardRecord, rows_of_shard
from trainer.data.prepare.stats import SetStats
from trainer.data.sources.protocol import BrokenRow, PageSource, Row
from trainer.data.sources.rejected_rows import NAMED_ROWS, RejectedRows
from trainer.data.sources.splits import VALIDATION, SplitRegister, image_key, text_digest

BROKEN_NAME: Final = "broken-rows.jsonl"
DOUBTFUL_NAME: Final = "doubtful-rows.jsonl"
"""Rows that are in the set and may teach a model to invent; people have to look at them."""
_DUPLICATES: Final = (RowCode.DUPLICATE_ACROSS_SPLITS, RowCode.NEAR_DUPLICATE_ACROSS_SPLITS)
_SHOWN_ROWS: Final = 5

Progress = Callable[[int, int | None], None]


def prepare(
    source: PageSource,
    converter: Converter,
    request: PrepareRequest,
    *,
    workers: int = 1,
    overwrite: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Prepare a set, or continue an unfinished one.

    Args:
        source: where rows come from.
        converter: makes samples of them.
        request: what to prepare.
        workers: processes that convert; see `convert_rows`.
        overwrite: replace another set.
        restart: delete unfinished work.
        progress: gets the rows done and, if known, the number of all rows.

    Returns:
        The finished set, or the one that the same request made earlier.
    """
    described = {"source": {"name": source.name, "fingerprint": source.fingerprint()}, **request.as_json()}
    fingerprint = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    with OutputFolder(request.out, fingerprint, overwrite=overwrite, restart=restart) as output:
        if output.is_done:
            output.discard()
            return Summary(request.out, load_manifest(request.out))
        run = _Run(request, output)
        done = run.num_rows_done
        rows = run.counted(islice(source.rows(start=done), _rest(request.limit, done)), done + 1)
        outcomes = convert_rows(rows, converter, workers)
        total = _total(source.num_rows, request.limit)
        report = progress or (lambda done, total: None)
        report(done, total)
        with closing(outcomes):
            while run.step(outcomes, lambda done: report(done, total)):
                pass
        try:
            run.judge()
            run.account(total)
        except DataError:
            # Corrected rows or another share start again; allowing more broken rows continues from here.
            output.refuse()
            raise
        manifest = {**run.manifest(described, fingerprint), "passed_over": dict(source.passed_over)}
        with writing_to(request.out):
            _write_lines(output.folder / BROKEN_NAME, (note for note in output.journal() if "code" in note))
            _write_lines(output.folder / DOUBTFUL_NAME, (note for note in output.journal() if "doubt" in note))
            write_card(output.folder, manifest, run.stats, request.caption_fonts)
            write_file(output.folder / MANIFEST_NAME, _as_bytes(manifest))
            output.publish()
    return Summary(request.out, manifest)


class _Run:
    """State between steps."""

    def __init__(self, request: PrepareRequest, output: OutputFolder) -> None:
        self._request, self._output = request, output
        state = output.state
        self._step = state.get("step", 0)
        self._shards = [ShardRecord(**record) for record in state.get("shards", ())]
        self._named_splits: set[str] = set(state.get("named_splits", ()))
        self.stats = SetStats.from_json(state["tally"]) if state else SetStats()
        self.rejected = RejectedRows(request.max_broken_share)
        self._register = SplitRegister()
        self._pages = LikenessRegister()
        self._texts: dict[bytes, bytes] = {}
        self._num_read = self._num_done_before = 0
        if state:
            self.rejected.num_rows = state["num_rows"]
            self.rejected.codes = Counter(state["codes"])
        for note in output.journal():
            self._recall(note)
        self._num_done_before = self.num_rows_done

    @property
    def num_rows_done(self) -> int:
        """Rows read by finished steps."""
        return self.rejected.num_rows + self.stats.duplicates

    def counted(self, rows: Iterable[Row | BrokenRow], first: int) -> Iterator[Row | BrokenRow]:
        """Rows numbered over the whole source, and counted: shards and streams number their own rows."""
        for number, row in enumerate(rows, first):
            self._num_read += 1
            yield replace(row, number=number)

    def account(self, total: int | None) -> None:
        """Check that every row of the source is in the set's files, or is named with the reason why it is not.

        Args:
            total: rows that the source says it has; None if it does not know.

        Raises:
            DataError: a row is neither, or is both (`rows_lost`).
        """
        num_rows = self._num_done_before + self._num_read
        named = Counter(note["number"] for note in self._output.journal() if "code" in note)
        written = {row for shard in self._shards for row in rows_of_shard(self._output.folder / shard.name)}
        wanted = set(range(1, num_rows + 1))
        lost = sorted(wanted - written - named.keys())
        twice = sorted((written & named.keys()) | {row for row, count in named.items() if count > 1})
        strange = sorted((written | named.keys()) - wanted)
        if not (lost or twice or strange or (total is not None and total != num_rows)):
            return
        shown = ", ".join(map(str, (lost or twice or strange)[:_SHOWN_ROWS])) or "none"
        raise DataError(
            DataCode.ROWS_LOST,
            f"of {num_rows if total is None else total} rows {num_rows} were read, {len(written)} are in the set and "
            f"{len(named)} are named as left out (rows {shown})",
            "the source may have changed meanwhile: run the command again with --restart; if this stays, it is a fault "
            "of the program",
        )

    def step(self, outcomes: Iterator[Outcome], report: Callable[[int], None]) -> bool:
        """Convert, write and commit the next rows; False if there were no more. `report` gets the rows done so far."""
        open_files: dict[str, ShardFile] = {}
        notes: list[dict[str, Any]] = []
        try:
            for outcome in islice(outcomes, self._request.step_rows):
                if isinstance(outcome, BrokenRow):
                    self.rejected.skip(outcome)
                    notes.append(_noted(outcome))
                else:
                    self._take(outcome, open_files, notes)
                report(self.num_rows_done)
            if not notes:
                return False
            with writing_to(self._request.out):
                self._shards += [open_files[split].finish() for split in sorted(open_files)]
                self._step += 1
                self._output.commit(notes, self._state())
        finally:
            for file in open_files.values():
                file.close()
        return True

    def judge(self) -> None:
        """Check that the set has enough samples.

        Raises:
            DataError: the source has no rows, too many are broken, or a split is empty.
        """
        if not self.num_rows_done:
            raise DataError(DataCode.SOURCE_EMPTY, "the source has no rows", "check the source")
        self.rejected.check()
        wanted = self._named_splits or set(self._request.shares.wanted())
        empty = sorted(split for split in wanted if not self.stats.samples[split])
        if empty:
            counts = ", ".join(f"{number} {name}" for name, number in self.stats.samples.items()) or "none"
            raise DataError(
                DataCode.SPLIT_EMPTY,
                f"there is no sample in {' and '.join(empty)} (there are {counts}; {self.stats.duplicates} duplicates)",
                self._remedy(empty),
            )

    def _remedy(self, empty: list[str]) -> str:
        shares, lowest = self._request.shares, self.stats.lowest_place
        if empty == [VALIDATION] and not self._named_splits and not shares.test:
            return f"give more rows, or at least --validation-share {math.ceil(lowest * 100 + 1e-9) / 100:g}"
        return "give more rows, larger shares, or another --split-salt"

    def manifest(self, described: dict[str, Any], fingerprint: str) -> dict[str, Any]:
        """The set's `dataset.json`."""
        splits: dict[str, Any] = {}
        for name in sorted(self.stats.samples):
            files = [shard.as_json() for shard in self._shards if shard.split == name]
            splits[name] = {
                "num_samples": self.stats.samples[name],
                "num_images": self.stats.images[name],
                "files": files,
            }
        return {
            "format_version": FORMAT_VERSION,
            "fingerprint": self.stats.digest,
            "request_fingerprint": fingerprint,
            "request": described,
            "splits": splits,
            "num_rows": self.num_rows_done,
            "broken_rows": dict(self.rejected.codes),
            "num_duplicates": self.stats.duplicates,
            "doubtful_rows": dict(self.stats.doubts),
            "prompts": dict(self.stats.prompts),
        }

    def _take(
        self, samples: list[PreparedSample], open_files: dict[str, ShardFile], notes: list[dict[str, Any]]
    ) -> None:
        split = samples[0].split or self._request.shares.split_of(samples[0].group)
        self.stats.lowest_place = min(self.stats.lowest_place, self._request.shares.place_of(samples[0].group))
        if samples[0].split is not None:
            self._named_splits.add(split)
        keys = tuple(key for sample in samples for key in sample.content_keys())
        pages = [sample.likeness for sample in samples]
        refused = self._duplicate(keys, pages, split)
        if refused is not None:
            self.stats.duplicates += 1
            notes.append(_noted(BrokenRow(samples[0].row, samples[0].name, *refused)))
            return
        self.rejected.take()
        for page in pages:
            self._pages.add(page, split)
        doubts = [doubt for sample in samples for doubt in self._doubts(sample)]
        self.stats.doubts.update(doubt.partition(":")[0] for doubt in doubts)
        images = {image_key(image.pixels_sha256)[:16].hex(): text_digest(sample.text).hex()
                  for sample in samples for image in sample.images}  # fmt: skip
        notes.append(
            {
                "split": split,
                "keys": [key[:16].hex() for key in keys],
                "pages": [page.as_text() for page in pages],
                "images": images,
            }
        )
        notes += [{"number": samples[0].row, "name": samples[0].name, "doubt": doubt} for doubt in doubts]
        with writing_to(self._request.out):
            for sample in samples:
                if split not in open_files:
                    open_files[split] = self._open(split)
                open_files[split].add(sample)
                self.stats.add(sample, split)

    def _duplicate(
        self, keys: tuple[bytes, ...], pages: Sequence[PageLikeness], split: str
    ) -> tuple[RowCode, str] | None:
        """Why a row cannot be in its split: another one has its content, or a copy of its page."""
        other = self._register.clash(keys, split)
        if other is not None:
            reason = f"its image or its text is in {other} already, so it cannot be in {split}"
            return RowCode.DUPLICATE_ACROSS_SPLITS, reason
        other = next((label for page in pages if (label := self._pages.find(page, but=split))), None)
        if other is not None:
            reason = f"a page of nearly the same text and look is in {other} already, so it cannot be in {split}"
            return RowCode.NEAR_DUPLICATE_ACROSS_SPLITS, reason
        return None

    def _doubts(self, sample: PreparedSample) -> Iterator[str]:
        """What is wrong with a sample that is usable all the same."""
        digest = text_digest(sample.text)
        for image in sample.images:
            if image.is_blank:
                yield "blank_image: nothing is printed on its image, and it has a text"
            key = image_key(image.pixels_sha256)[:16]
            if self._texts.setdefault(key, digest) != digest:
                yield "other_text: another row has the same image and another text"

    def _open(self, split: str) -> ShardFile:
        request = self._request
        name = f"data/{split}-{self._step:05d}{request.form.suffix}"
        return ShardFile(self._output.folder, name, split, request.form, several_images=request.several_images)

    def _recall(self, note: dict[str, Any]) -> None:
        if "keys" in note:
            self._register.clash(tuple(bytes.fromhex(key) for key in note["keys"]), note["split"])
            for page in note["pages"]:
                self._pages.add(PageLikeness.from_text(page), note["split"])
            for image, text in note["images"].items():
                self._texts.setdefault(bytes.fromhex(image), bytes.fromhex(text))
        elif "code" in note and note["code"] not in _DUPLICATES and len(self.rejected.broken) < NAMED_ROWS:
            self.rejected.broken.append(BrokenRow(**{**note, "code": RowCode(note["code"])}))

    def _state(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "shards": [shard.as_json() for shard in self._shards],
            "files": [shard.name for shard in self._shards],
            "named_splits": sorted(self._named_splits),
            "tally": self.stats.as_json(),
            "num_rows": self.rejected.num_rows,
            "codes": dict(self.rejected.codes),
        }


def _noted(row: BrokenRow) -> dict[str, Any]:
    return {"number": row.number, "name": row.name, "code": row.code.value, "reason": row.reason}


def _write_lines(path: Path, notes: Iterable[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(note) + "\n" for note in notes)
    write_file(path, lines.encode())


def _as_bytes(manifest: dict[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode(errors="replace")


def _rest(limit: int | None, done: int) -> int | None:
    return None if limit is None else max(limit - done, 0)


def _total(num_rows: int | None, limit: int | None) -> int | None:
    if num_rows is None or limit is None:
        return limit if num_rows is None else num_rows
    return min(num_rows, limit)
