"""Any source of pages as an evaluation set: what `trainer.data.sources` reads, written as files for readers.

An evaluation judges a model, not its data: a source with broken rows is refused rather than measured in part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from trainer.data.sources.columns import Columns
from trainer.data.sources.rejected_rows import RejectedRows
from trainer.data.sources.resolve import SourceOptions, open_source
from trainer.data.sources.samples import PageSample, read_samples
from trainer.data.sources.splits import TRAIN
from trainer.evaluation.samples import Layout, Sample, SampleError, SampleSet, make_set

TIER_WITHOUT_SPLIT = "all"


def load_source(spec: str, folder: Path, split: str | None, layout: Layout, limit: int | None = None) -> SampleSet:
    """Read a source to its end.

    Args:
        spec: whatever `prepare` takes, with columns that need no naming.
        folder: receives the images; it must exist as long as the set is used.
        split: the split to read; None for all, each a tier.
        layout: of all pages.
        limit: maximum number of samples, the first ones.

    Returns:
        The samples.

    Raises:
        SampleError: a row cannot be used, a sample has several images, or there are no samples.
    """
    source = open_source(spec, SourceOptions(split=split))
    rejected = RejectedRows(max_share=1.0)
    samples = islice(read_samples(source, Columns(), rejected, split=split), limit)
    pages = list(_written(samples, folder, layout))
    if rejected.num_broken:
        raise SampleError(
            f"{rejected.num_broken} of {rejected.num_rows} rows cannot be used, first {rejected.broken[0]}; "
            "correct them, or leave them out with `python -m trainer prepare` and measure on the set"
        )
    if split is not None and not pages:
        share = "" if split == TRAIN else f"prepare its source with --{split}-share 0.2, or "
        raise SampleError(f"{spec} has no page in the split {split}; {share}leave --split out to read all its pages")
    return replace(make_set(source.name, pages, None), split=split)


def _written(samples: Iterator[PageSample], folder: Path, layout: Layout) -> Iterator[Sample]:
    for place, sample in enumerate(samples):
        if len(sample.images) > 1:
            raise SampleError(f"{sample.name} has {len(sample.images)} images; readers take one page at a time")
        (image,) = sample.images
        path = folder / f"{place:06d}.{image.suffix}"
        path.write_bytes(image.data)
        yield Sample(sample.name, sample.split or TIER_WITHOUT_SPLIT, layout, path, sample.text)
