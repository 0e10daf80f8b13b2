"""The data of a run: samples to train on, held-out ones to check on, general ones that must not get worse.

Imports the packages behind sources when it reads one: a machine without them can train on samples from elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainer.data.sources.splits import TRAIN, VALIDATION, SplitShares
from trainer.training.dataset import SampleReader, TrainingSet, split_samples
from trainer.training.errors import TrainingCode, TrainingError
from trainer.training.options import TrainingOptions


@dataclass(slots=True)
class RunData:
    """Samples of a run.

    Attributes:
        train: to learn from.
        validation: to check on; may be empty.
        forgetting: general pages; may be empty.
        sources: what was read, for the record.
        note: what was left out, for people; empty where nothing was.
        num_named: samples whose split the source names.
    """

    train: TrainingSet = field(default_factory=TrainingSet)
    validation: TrainingSet = field(default_factory=TrainingSet)
    forgetting: TrainingSet = field(default_factory=TrainingSet)
    sources: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    num_named: int = 0

    def as_json(self) -> dict[str, Any]:
        """For `run.json`: what an adapter's manifest needs, and what a resumed run must have again."""
        named = ((TRAIN, self.train), (VALIDATION, self.validation), ("forgetting", self.forgetting))
        return {
            "fingerprint": self.train.fingerprint,
            "num_samples": len(self.train),
            "parts": {
                name: {"samples": len(samples), "too_long": samples.num_too_long, "sha256": samples.fingerprint}
                for name, samples in named
            },
            "sources": self.sources,
        }


def load_data(options: TrainingOptions, reader: SampleReader) -> RunData:
    """Read the sources that the options name; raises `TrainingError` if there are no samples to train on."""
    data = RunData()
    own_pages = options.eval_dataset_name is None
    wanted = {TRAIN: data.train, VALIDATION: data.validation} if own_pages else {TRAIN: data.train}
    notes = [_read(options.dataset_name, options, reader, wanted, data)]
    for name, into in ((options.eval_dataset_name, data.validation), (options.forgetting_dataset, data.forgetting)):
        if name is not None:
            notes.append(_read(name, options, reader, {VALIDATION: into}, data, whole=True))
    if not data.validation.samples:
        notes.append("there are no held-out pages, so the last adapter is kept, whether or not it reads best")
    data.note = "; ".join(note for note in notes if note)
    if not data.train.samples:
        raise _no_samples(options, data, reader)
    return data


def _no_samples(options: TrainingOptions, data: RunData, reader: SampleReader) -> TrainingError:
    """Nothing to train on, with the way out that fits."""
    too_long = data.train.num_too_long
    reason = f" ({too_long} are too long)" if too_long else ""
    if too_long:
        # What a sample may have is less than --max-length by prompt and ends.
        needed = data.train.shortest_too_long + options.max_length - reader.max_tokens
        remedy = f"--max-length {needed} takes the shortest of them"
    elif data.num_named:
        remedy = "it names splits, and has nothing in `train`: put pages there, or take its names of splits away"
    elif data.validation.samples and options.eval_dataset_name is None:
        remedy = (
            f"all {len(data.validation)} are held out: add --validation-share 0 to train on them, "
            "or prepare the set with a lower --validation-share"
        )
    else:
        remedy = "add pages, or see the set's card"
    return TrainingError(TrainingCode.NO_SAMPLES, f"{options.dataset_name} has no samples to train on{reason}", remedy)


def _read(
    name: str,
    options: TrainingOptions,
    reader: SampleReader,
    wanted: dict[str, TrainingSet],
    data: RunData,
    *,
    whole: bool = False,
) -> str:
    from trainer.data.sources.columns import Columns
    from trainer.data.sources.rejected_rows import RejectedRows
    from trainer.data.sources.resolve import SourceOptions, open_source
    from trainer.data.sources.samples import read_samples

    source = open_source(name, SourceOptions())
    rejected = RejectedRows(max_share=options.max_broken_share)
    columns = Columns(image=options.image_column, text=options.text_column)
    limits = {TRAIN: options.max_train_samples, VALIDATION: options.max_eval_samples}
    shares = SplitShares(options.validation_share if VALIDATION in wanted and not whole else 0.0)
    samples = split_samples(read_samples(source, columns, rejected), shares)
    if whole:  # a source used only for checks
        samples = ((VALIDATION, sample) for _, sample in samples)
    for split, sample in samples:
        data.num_named += sample.split is not None
        into = wanted.get(split)
        if into is None or _is_full(into, limits[split]):
            if all(_is_full(each, limits[key]) for key, each in wanted.items()):
                break
            continue
        reader.take(sample, into)
    else:
        rejected.check()
    data.sources[source.name] = {
        "sha256": source.fingerprint(),
        "rows": rejected.num_rows,
        "broken": rejected.num_broken,
    }
    too_long = sum(each.num_too_long for each in wanted.values())
    notes = []
    if rejected.broken:
        notes.append(f"{rejected.num_broken} of {rejected.num_rows} rows left out, first {rejected.broken[0]}")
    if too_long:
        notes.append(f"{too_long} samples are longer than {reader.max_tokens} tokens and left out")
    return f"{source.name}: {', '.join(notes)}" if notes else ""


def _is_full(samples: TrainingSet, limit: int | None) -> bool:
    return limit is not None and len(samples) >= limit
