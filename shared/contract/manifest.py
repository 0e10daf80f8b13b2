"""`manifest.json`: what one version of an adapter is, where it comes from and how well it reads.

Owns the format, its limits and its versioning; knows no folder and no weights. `format` is `MAJOR.MINOR`. A new minor
version only adds fields that a reader may ignore, so unknown fields of a newer minor are skipped. In the minors known
here an unknown field is an error, since it can only be misspelt. Another major version is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.contract.identity import MAX_VERSION, NAME_PATTERN, REVISION_PATTERN, AdapterRef
from shared.contract.refusals import AdapterRefusedError, Reason

FORMAT_MAJOR, FORMAT_MINOR = 1, 2
FORMAT = f"{FORMAT_MAJOR}.{FORMAT_MINOR}"
MAX_MANIFEST_BYTES = 256 * 1024
TRAIN_SPLIT = "train"
MAX_NAMED_PROBLEMS = 5
"""Invalid fields that a message lists; it only counts the rest."""

_FORMAT = re.compile(r"(\d{1,4})\.(\d{1,4})", re.ASCII)
_JSON_DEPTH_ERRORS = (ValueError, RecursionError)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=0, le=10**15)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Change = Annotated[float, Field(ge=-(10**6), le=10**6)]
Rate = Annotated[float, Field(ge=0, le=10**6)]
Dtype = Literal["F32", "F16", "BF16"]


class _Record(BaseModel):
    """Frozen and strict: no conversion between numbers and text, no NaN."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class BaseIdentity(_Record):
    """The model that the adapter was trained on."""

    model_id: Text
    """Repository such as `deepseek-ai/DeepSeek-OCR-2`, or the name of a checkpoint such as `nano`."""
    revision: Annotated[str, Field(pattern=REVISION_PATTERN)]
    """Commit of the repository (40 hex digits), or SHA-256 of the weights (64; see `identity.weights_revision`)."""


class LoraRecord(_Record):
    """Rank, scaling and modules of the LoRA; it must agree with `adapter_config.json` and with the tensors."""

    rank: Annotated[int, Field(ge=1, le=65536)]
    alpha: Annotated[float, Field(gt=0, le=10**6)]
    use_rslora: bool = False
    dtype: Dtype
    targets: Annotated[tuple[Text, ...], Field(min_length=1, max_length=256)]
    """Last parts of the adapted modules' names, sorted, such as `q_proj`."""
    num_tensors: Annotated[int, Field(ge=2, le=10**6)]


class FileRecord(_Record):
    """One file of the folder."""

    sha256: Sha256
    size_bytes: Count


class EvaluatedSet(_Record):
    """Pages that base and adapter both read."""

    name: Text
    pages: Count
    sha256: Sha256
    """Fingerprint over every image and truth, in order."""
    split: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")] | None = None
    """Split of a source that was read; None for a whole source or a set with tiers. Since format 1.2."""
    seen_pages: Count | None = None
    """Pages that the adapter was trained on, or copies of them; None where that is not known. Since format 1.2."""


class TierMetrics(_Record):
    """Scores of one reader on the pages of a tier; rates are fractions, not percent."""

    pages: Count
    characters: Count
    cer: Rate
    """Character error rate: all edits over all characters."""
    cer_capped: Rate
    """The same, counting at most one edit per character of each page's truth."""
    wer: Rate
    exact_ratio: Ratio
    unfinished_ratio: Ratio
    """Pages whose reading repeated itself or reached the token limit."""


class Metrics(_Record):
    """Scores of one reader."""

    cer: Rate
    """Over the pages of all tiers."""
    tiers: Annotated[dict[Text, TierMetrics], Field(min_length=1, max_length=64)]


class Evaluation(_Record):
    """Base and adapter on the same pages."""

    sets: Annotated[tuple[EvaluatedSet, ...], Field(min_length=1, max_length=16)]
    normalisation: Annotated[str, Field(min_length=1, max_length=500)]
    """How texts were normalised before edits were counted."""
    min_improvement_ratio: Ratio
    """Relative reduction of the base's error rate that was required."""
    max_tier_loss: Ratio
    """Largest increase of the error rate that was allowed in any tier."""
    task: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")] | None = None
    """What both were asked to do with the pages; since format 1.1."""
    mode: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")] | None = None
    """Resolution at which both read; since format 1.2."""
    min_pages: Count | None = None
    """Pages that were required; since format 1.2."""
    cer_change: tuple[Change, Change] | None = None
    """95 % interval of the adapter's error rate minus the base's, over other pages of this kind; since format 1.2."""
    base: Metrics
    adapter: Metrics

    @property
    def objections(self) -> tuple[str, ...]:
        """Why the adapter is not better than the base by its publisher's margins; empty if it is."""
        found = self._faults_of_pages()
        wanted = self.base.cer * (1 - self.min_improvement_ratio)
        if not self.base.cer:
            found.append("the base model makes no error on these pages, so nothing can be gained on them")
        elif self.adapter.cer >= self.base.cer or self.adapter.cer > wanted:
            found.append(
                f"CER {self.adapter.cer:.2%} against {self.base.cer:.2%} of the base, wanted is at most {wanted:.2%}"
            )
        elif self.cer_change is not None and self.cer_change[1] >= 0:
            low, high = (100 * end for end in self.cer_change)
            found.append(f"the change of the CER is between {low:+.2f} and {high:+.2f} points, so there may be no gain")
        for tier, before in self.base.tiers.items():
            loss = self.adapter.tiers[tier].cer - before.cer
            if loss > self.max_tier_loss:
                found.append(f"tier {tier!a} loses {100 * loss:.2f} points, allowed are {100 * self.max_tier_loss:.2f}")
        return tuple(found)

    @property
    def num_pages(self) -> int:
        """Pages of all sets."""
        return sum(each.pages for each in self.sets)

    def _faults_of_pages(self) -> list[str]:
        """Why the pages prove nothing: they were trained on, or are too few."""
        if self.min_pages is None:
            return []  # of a format that did not ask
        found = []
        seen = sum(each.seen_pages or 0 for each in self.sets)
        if seen:
            found.append(f"{seen} of {self.num_pages} pages were trained on, or are copies of such pages")
        elif any(each.split == TRAIN_SPLIT for each in self.sets) or TRAIN_SPLIT in self.base.tiers:
            found.append(f"pages of the split {TRAIN_SPLIT} are for training: measure on held-out ones")
        if self.num_pages < self.min_pages:
            found.append(f"{self.num_pages} pages are too few, wanted are at least {self.min_pages}")
        return found

    @model_validator(mode="after")
    def _check_tiers(self) -> Self:
        if self.base.tiers.keys() != self.adapter.tiers.keys():
            raise ValueError("base and adapter were read on other tiers")
        return self


class TrainingData(_Record):
    """What the adapter was trained on, without its location."""

    sha256: Sha256
    """Fingerprint, as the trainer computes it for its prepared data."""
    samples: Count


class CodeVersion(_Record):
    """The program that made the adapter, or that published it if it was made elsewhere."""

    program: Text
    version: Text
    commit: Text


class AdapterManifest(_Record):
    """One version of an adapter."""

    format: Annotated[str, Field(pattern=r"^\d{1,4}\.\d{1,4}$")] = FORMAT
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    version: Annotated[int, Field(ge=1, le=MAX_VERSION)]
    publication_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Random; lets a publisher recognise its own version."""
    created: AwareDatetime
    """By the publisher's clock, for people. Only `version` orders versions, so wrong clocks do no harm."""
    activate: bool
    """Whether its publisher wanted it in use at once."""
    base: BaseIdentity
    lora: LoraRecord
    files: Annotated[dict[Text, FileRecord], Field(min_length=1, max_length=16)]
    """Every file of the folder except the manifest, by name."""
    evaluation: Evaluation | None = None
    training_data: TrainingData | None = None
    code: CodeVersion
    forced: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """Why it was published although it was not proven better; None if it was."""

    @property
    def reference(self) -> AdapterRef:
        """`name@version`."""
        return AdapterRef(self.name, self.version)


def to_json(manifest: AdapterManifest) -> bytes:
    """The manifest as indented JSON in UTF-8, keys in a fixed order, with a final line break."""
    return manifest.model_dump_json(indent=1).encode() + b"\n"


def parse_manifest(data: bytes) -> AdapterManifest:
    """Read a manifest from an untrusted source.

    Args:
        data: UTF-8 JSON of any size; more than `MAX_MANIFEST_BYTES` is refused.

    Returns:
        The manifest.

    Raises:
        AdapterRefusedError: `manifest_too_large`, `manifest_not_json`, `manifest_format` or `manifest_invalid`.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise AdapterRefusedError(
            Reason.MANIFEST_TOO_LARGE, f"{len(data)} bytes, the limit is {MAX_MANIFEST_BYTES} bytes"
        )
    values = parse_object(data, Reason.MANIFEST_NOT_JSON)
    minor = _known_minor(values.get("format"))
    try:
        return AdapterManifest.model_validate_json(data, extra="ignore" if minor > FORMAT_MINOR else "forbid")
    except ValidationError as error:
        raise AdapterRefusedError(Reason.MANIFEST_INVALID, _problems(error)) from error


def parse_object(data: bytes, reason: Reason) -> dict[str, Any]:
    """Parse a JSON object strictly: UTF-8, no key twice, no NaN.

    Args:
        data: The text; the caller limits its size.
        reason: Reason of a refusal.

    Returns:
        The object.

    Raises:
        AdapterRefusedError: With `reason`.
    """
    try:
        values = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except _JSON_DEPTH_ERRORS as error:
        raise AdapterRefusedError(reason, f"not readable ({type(error).__name__})") from error
    if not isinstance(values, dict):
        raise AdapterRefusedError(reason, "not an object")
    return values


def utc(moment: datetime) -> datetime:
    """The time without fractions of a second, as manifests store it."""
    return moment.replace(microsecond=0)


def _known_minor(stated: object) -> int:
    match = _FORMAT.fullmatch(stated) if isinstance(stated, str) else None
    if match is None:
        raise AdapterRefusedError(Reason.MANIFEST_FORMAT, "no format of the form MAJOR.MINOR")
    if int(match[1]) != FORMAT_MAJOR:
        raise AdapterRefusedError(Reason.MANIFEST_FORMAT, f"format {match[0]}, known is {FORMAT_MAJOR}")
    return int(match[2])


def _unique(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _problems(error: ValidationError) -> str:
    """Invalid fields with pydantic's messages, but without their values, which are untrusted."""
    found = [
        f"{'.'.join(map(str, problem['loc'])) or 'manifest'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    more = len(found) - MAX_NAMED_PROBLEMS
    return "; ".join(found[:MAX_NAMED_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
