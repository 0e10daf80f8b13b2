"""`python -m trainer prepare`: turn any source of pages into a prepared set.

Owns the flags. Sources are read by `trainer.data.sources`, sets are written by `trainer.data.prepare`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from trainer.commands.flags import positive
from trainer.config import TrainerSettings
from trainer.data.errors import DataCode, DataError
from trainer.data.render.language import LANGUAGES
from trainer.data.sources.kinds import SourceKind

if TYPE_CHECKING:
    from trainer.data.prepare.conversion import Converter
    from trainer.data.prepare.request import PrepareRequest
    from trainer.data.prepare.run import Progress
    from trainer.data.sources.columns import Columns
    from trainer.data.sources.protocol import PageSource

LOG_EVERY_S = 30.0
AUTO, SAMPLES = "auto", "samples"
_FOR_SAMPLES = ("path", "samples", "samples_task")
_NOT_FOR_SAMPLES = (
    "dataset_config", "dataset_revision", "streaming", "image_root", "image_column", "text_column", "read_column",
    "split_column", "text_is_file", "convert_to_images", "level", "dpi", "delimiter", "encoding",
)  # fmt: skip


def add_prepare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("prepare", help="turn any source of pages into a set to train on", description=__doc__)
    source = parser.add_argument_group("source")
    source.add_argument("source", nargs="?", metavar="SOURCE", help="folder, index, Parquet, shards or OWNER/NAME")
    source.add_argument("--dataset-name", metavar="SOURCE", help="another way to name the source")
    source.add_argument(
        "--source",
        dest="kind",
        choices=(AUTO, *SourceKind, SAMPLES),
        default=AUTO,
        help="what a folder is read as; samples: pages that a service has kept, at --path (%(default)s)",
    )
    source.add_argument("--path", type=Path, metavar="DIR", help="the service's sample folder, or its unpacked export")
    source.add_argument("--samples", choices=("corrected", "all"), help="which kept pages (corrected)")
    source.add_argument("--samples-task", choices=("free", "markdown"), help="what they were read for (free)")
    source.add_argument("--dataset-config", metavar="NAME", help="configuration of a Hub data set")
    source.add_argument("--dataset-revision", metavar="REV", help="branch, tag or commit of a Hub data set")
    source.add_argument("--streaming", action="store_true", help="read a Hub data set without a copy on disk")
    source.add_argument("--image-root", type=Path, metavar="DIR", help="folder that image paths are relative to")
    source.add_argument("--level", choices=("page", "line"), help="a row of PAGE-XML, ALTO or hOCR (page)")
    source.add_argument("--dpi", type=positive, metavar="N", help="resolution of pages of PDFs (150)")
    source.add_argument("--delimiter", metavar="CHARACTER", help="of a CSV file; default: as its header says")
    source.add_argument("--encoding", metavar="NAME", help="of an index or of text files, such as cp1252 (UTF-8)")
    source.add_argument("--limit", type=positive, metavar="N", help="only the first N rows")
    columns = parser.add_argument_group("columns")
    columns.add_argument("--image-column", metavar="NAME", help="the image, or a list of images")
    columns.add_argument("--text-column", metavar="NAME", help="the text to produce")
    columns.add_argument("--read-column", metavar="NAME", help="the text to draw, if it differs")
    columns.add_argument("--split-column", metavar="NAME", help="names each row's split")
    columns.add_argument("--text-is-file", action="store_true", help="the text's column names a file")
    drawing = parser.add_argument_group("drawing text on pages")
    drawing.add_argument("--convert-to-images", action="store_true", help="draw the text; the source needs no images")
    drawing.add_argument(
        "--fonts", type=Path, nargs="+", default=[], metavar="DIR", help="folders with fonts; without any, Latin only"
    )
    drawing.add_argument(
        "--language", choices=LANGUAGES, help="of Han characters, which faces draw differently; default: by each text"
    )
    drawing.add_argument("--font-size", type=_size_range, default=(20, 28), metavar="A-B", help="pixels (20-28)")
    drawing.add_argument("--page-size", type=_page_size, default=(1024, 1448), metavar="WxH", help="pixels (1024x1448)")
    drawing.add_argument("--margin", type=positive, default=64, metavar="N", help="pixels (%(default)s)")
    drawing.add_argument("--max-pages", type=positive, default=16, metavar="N", help="of one text (%(default)s)")
    drawing.add_argument(
        "--degraded-share",
        type=float,
        default=0.0,
        metavar="P",
        help="share of pages degraded like scans (%(default)s)",
    )
    drawing.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of faces, sizes and degradation (%(default)s)"
    )
    splits = parser.add_argument_group("splits, where the source names none")
    splits.add_argument("--validation-share", type=float, default=0.1, metavar="P", help="(%(default)s)")
    splits.add_argument("--test-share", type=float, default=0.0, metavar="P", help="(%(default)s)")
    splits.add_argument("--split-salt", default="", metavar="WORD", help="another word gives another partition")
    rows = parser.add_argument_group("broken rows")
    rows.add_argument(
        "--max-broken-share", type=float, default=0.01, metavar="P", help="maximum share left out (%(default)s)"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the set; written to a temporary folder and renamed"
    )
    output.add_argument("--format", choices=("parquet", "webdataset"), default="parquet", help="(%(default)s)")
    output.add_argument("--rows-per-file", type=positive, default=1000, metavar="N", help="(%(default)s)")
    output.add_argument("--overwrite", action="store_true", help="replace an existing prepared set")
    output.add_argument("--restart", action="store_true", help="delete unfinished work of an earlier run")
    output.add_argument(
        "--workers", type=_workers, default=1, metavar="N", help="processes; 0 for one per core (%(default)s)"
    )
    parser.set_defaults(run=run_prepare)


def run_prepare(options: argparse.Namespace, _: TrainerSettings) -> str:
    """Run the command; returns what was prepared."""
    # Imported late: pyarrow takes a moment, which --help does not need.
    from trainer.data.prepare.run import prepare

    source = _source(options)
    columns = _columns(options, source)
    converter = _converter(options, columns, source)
    request = _request(options, columns, converter, source)
    with _progress() as progress:
        summary = prepare(
            source,
            converter,
            request,
            workers=options.workers,
            overwrite=options.overwrite,
            restart=options.restart,
            progress=progress,
        )
    return "\n".join([str(summary), *_notes(summary.manifest["splits"])])


def _notes(splits: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What training and publishing will lack, said before minutes go into them."""
    from trainer.data.sources.splits import TEST, TRAIN, VALIDATION
    from trainer.publishing.gate import MIN_PAGES

    if TRAIN in splits and VALIDATION not in splits:
        yield "no validation split: `train` will keep its last adapter, measured on nothing"
    num_pages = splits.get(TEST, {}).get("num_images", MIN_PAGES)
    if num_pages < MIN_PAGES:
        yield f"only {num_pages} pages in test: `publish` asks for {MIN_PAGES}; hold out more, or lower its --min-pages"


def _source(options: argparse.Namespace) -> PageSource:
    from trainer.data.sources.index import TableFormat
    from trainer.data.sources.resolve import SourceOptions, open_source

    is_samples = options.kind == SAMPLES
    spec = options.source or options.dataset_name
    if sum(map(bool, (options.source, options.dataset_name, is_samples))) != 1:
        raise DataError(
            DataCode.OPTIONS_CONFLICT,
            "there must be exactly one source",
            "give SOURCE, --dataset-name or --source samples --path DIR",
        )
    _refuse_unused(options)
    if is_samples:
        return _kept_samples(options)
    source = open_source(
        spec,
        SourceOptions(
            image_root=options.image_root,
            config=options.dataset_config,
            revision=options.dataset_revision,
            streaming=options.streaming,
            kind=None if options.kind == AUTO else SourceKind(options.kind),
            level=options.level,
            dpi=options.dpi,
            table=TableFormat(options.delimiter, options.encoding),
        ),
    )
    _refuse_out_in_source(options, spec)
    return source


def _refuse_out_in_source(options: argparse.Namespace, spec: str) -> None:
    """Raise `DataError` where the set would be the source itself; below it, it is passed over as a prepared set."""
    if Path(spec).is_dir() and Path(spec).resolve() == options.out.resolve():
        raise DataError(DataCode.OPTIONS_CONFLICT, f"--out is the source, {spec}", "name another folder")


def _refuse_unused(options: argparse.Namespace) -> None:
    """Raise `DataError` for an option that the kind of source has no use for."""
    is_samples = options.kind == SAMPLES
    unused = [name for name in (_NOT_FOR_SAMPLES if is_samples else _FOR_SAMPLES) if getattr(options, name)]
    if unused:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in unused)
        where = "with" if is_samples else "without"
        raise DataError(DataCode.OPTIONS_CONFLICT, f"{flags} has no effect {where} --source samples", "leave it out")


def _kept_samples(options: argparse.Namespace) -> PageSource:
    from shared.contract.prompts import Task
    from trainer.data.sources.kept_samples import KeptSamples, SampleUse

    if options.path is None:
        raise DataError(DataCode.OPTIONS_CONFLICT, "the samples have no folder", "name it with --path DIR")
    samples = KeptSamples(options.path, SampleUse(options.samples or "corrected"), Task(options.samples_task or "free"))
    samples.audit()
    return samples


def _columns(options: argparse.Namespace, source: PageSource) -> Columns:
    from trainer.data.sources.columns import Columns

    wanted = Columns(
        options.image_column, options.text_column, options.read_column, options.split_column, options.text_is_file
    )
    return wanted.resolved(source.columns, needs_image=not options.convert_to_images)


def _converter(options: argparse.Namespace, columns: Columns, source: PageSource) -> Converter:
    from trainer.data.prepare.conversion import ReadConverter
    from trainer.data.sources.columns import holds_lists

    if not options.convert_to_images:
        return ReadConverter(
            columns, source.image_root, holds_lists(source, columns), groups_by_image=options.kind == SAMPLES
        )
    from trainer.data.prepare.drawing import DrawConverter
    from trainer.data.render.pages import PageStyle

    width, height = options.page_size
    converter = DrawConverter(
        columns,
        tuple(options.fonts),
        source.image_root,
        PageStyle(width, height, options.margin, options.font_size),
        options.degraded_share,
        options.max_pages,
        options.seed,
        options.language,
    )
    if min(width, height) - 2 * options.margin < 4 * options.font_size[1]:
        raise DataError(
            DataCode.OPTIONS_CONFLICT,
            "the margins leave no room for text",
            "give a larger --page-size or a smaller --margin",
        )
    _ = converter.faces  # fail on missing fonts before the first row
    return converter


def _request(options: argparse.Namespace, columns: Columns, converter: Converter, source: PageSource) -> PrepareRequest:
    from trainer.data.prepare.request import PrepareRequest
    from trainer.data.prepare.shards import SetFormat
    from trainer.data.sources.kept_samples import KeptSamples
    from trainer.data.sources.splits import SplitShares

    try:
        shares = SplitShares(options.validation_share, options.test_share, options.split_salt)
    except ValueError as error:
        raise DataError(DataCode.OPTIONS_CONFLICT, str(error), "lower --validation-share and --test-share") from error
    settings = {"columns": asdict(columns), **_drawing_settings(options)}
    if isinstance(source, KeptSamples):
        settings["samples"] = {"use": source.use, "task": source.task}
    opened = {"level": options.level, "delimiter": options.delimiter, "encoding": options.encoding}
    settings |= {name: value for name, value in opened.items() if value is not None}
    return PrepareRequest(
        out=options.out,
        form=SetFormat(options.format),
        shares=shares,
        max_broken_share=options.max_broken_share,
        limit=options.limit,
        step_rows=options.rows_per_file,
        several_images=converter.several_images,
        settings=settings,
        caption_fonts=tuple(options.fonts),
    )


def _drawing_settings(options: argparse.Namespace) -> dict[str, Any]:
    """How pages were drawn, for the manifest; fonts by name, without local folders."""
    if not options.convert_to_images:
        return {}
    from trainer.data.render.faces import SUFFIXES

    names = ["font_size", "page_size", "margin", "max_pages", "degraded_share", "seed"]
    names += ["language"] if options.language else []
    files = (path for folder in options.fonts for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    fonts = sorted(path.name for path in files)
    return {"drawing": {**{name: getattr(options, name) for name in names}, "fonts": fonts}}


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal, a line every `LOG_EVERY_S` in a log."""
    is_terminal = sys.stderr.isatty()
    with tqdm(unit=" rows", desc="prepare", file=sys.stderr, mininterval=0.2 if is_terminal else LOG_EVERY_S) as bar:

        def report(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report


def _size_range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    sizes = int(low), int(high or low)
    if not 6 <= sizes[0] <= sizes[1]:
        raise argparse.ArgumentTypeError(f"{text} is not a range of sizes such as 20-28")
    return sizes


def _page_size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return positive(width), positive(height)


def _workers(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative; 0 is one for each core")
    return number
