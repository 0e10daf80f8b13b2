"""Statistics of a prepared set, counted while it is written; small enough to be stored with every finished step."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from shared.contract.prompts import recognise
from trainer.data.prepare.conversion import PreparedSample


@dataclass(slots=True)
class SetStats:
    """Counts over samples.

    Attributes:
        samples: by split.
        images: by split.
        characters: of the texts to produce, by character, without white space.
        faces: images drawn with each face.
        longest_text: characters of the longest text.
        largest_px: greatest width and height of an image.
        num_text_characters: characters of all texts.
        prompts: what samples of chats ask for, by task; `other` where it is no public prompt.
        doubts: samples in the set that people have to look at, by reason.
        duplicates: rows refused because another split has their content.
        lowest_place: lowest position of any content between 0 and 1; a share above it holds something out.
        digest: over all samples in order.
    """

    samples: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    faces: Counter[str] = field(default_factory=Counter)
    prompts: Counter[str] = field(default_factory=Counter)
    doubts: Counter[str] = field(default_factory=Counter)
    longest_text: int = 0
    largest_px: tuple[int, int] = (0, 0)
    num_text_characters: int = 0
    duplicates: int = 0
    lowest_place: float = 1.0
    digest: str = ""

    def add(self, sample: PreparedSample, split: str) -> None:
        """Count a sample."""
        self.samples[split] += 1
        self.images[split] += len(sample.images)
        self.characters.update(character for character in sample.text if not character.isspace())
        self.faces.update(sample.fonts)
        if sample.prompt:
            asked = recognise(sample.prompt)
            self.prompts[asked[0].value if asked else OTHER_PROMPT] += 1
        self.longest_text = max(self.longest_text, len(sample.text))
        self.num_text_characters += len(sample.text)
        for image in sample.images:
            self.largest_px = (max(self.largest_px[0], image.width_px), max(self.largest_px[1], image.height_px))
        content = "".join(image.pixels_sha256 for image in sample.images) + f"\0{split}\0{sample.text}"
        self.digest = hashlib.sha256(f"{self.digest}\0{content}".encode()).hexdigest()

    def scripts(self) -> dict[str, int]:
        """Different characters by script, from the first word of their Unicode names."""
        names: Counter[str] = Counter()
        for character in self.characters:
            category = unicodedata.category(character)
            name = unicodedata.name(character, "UNNAMED").split(" ")[0].split("-")[0]
            names[name.capitalize() if category[0] in "LM" else _KINDS.get(category[0], "Other")] += 1
        return dict(names.most_common())

    def as_json(self) -> dict[str, Any]:
        """For the state after a step."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SetStats:
        """What `as_json` gave."""
        counters = {name: Counter(value[name]) for name in _COUNTERS}
        return cls(**{**value, **counters, "largest_px": tuple(value["largest_px"])})


OTHER_PROMPT = "other"
_COUNTERS = ("samples", "images", "characters", "faces", "prompts", "doubts")
_KINDS = {"N": "Digits", "P": "Punctuation", "S": "Symbols"}
