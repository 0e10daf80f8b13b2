"""Text to token ids and back, for byte-level tokenizers of the DeepSeek-OCR family and for nano's.

Owns which ids are special, and which texts may produce them. Knows `tokenizers` and the prompts' trusted parts, but no
models; ids from a checkpoint's `config.json` are passed in as numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from shared.contract.prompts import split_prompt
from shared.deepseek_ocr.geometry import ViewPlan

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
IMAGE = "<image>"
GROUNDING_TOKENS = ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>")

_ROLES = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, "image_token_id": IMAGE}


class TokenizerError(ValueError):
    """A tokenizer.json that this family cannot use; the message says what is missing."""


class OcrTokenizer:
    """A `tokenizers.Tokenizer` for pages that never makes special tokens from users' texts.

    Args:
        backend: A byte-level tokenizer whose vocabulary has the public special tokens.
        overrides: Ids by their names in config.json (`bos_token_id`, `eos_token_id`, `pad_token_id`,
            `image_token_id`), used instead of a look-up by string; other keys are ignored.

    Attributes:
        bos_id: Starts every sequence.
        eos_id: Ends every answer.
        pad_id: Fills batches; never read.
        image_id: Placeholder of a vision token.

    Raises:
        TokenizerError: A special token is missing, or the tokenizer is not byte-level.
    """

    bos_id: int
    eos_id: int
    pad_id: int
    image_id: int

    def __init__(self, backend: Tokenizer, overrides: Mapping[str, int | None] | None = None) -> None:
        self._backend = backend
        self._definition: dict[str, object] = json.loads(backend.to_str())
        if '"ByteLevel"' not in json.dumps(self._definition["decoder"]):
            raise TokenizerError("the tokenizer's decoder is not ByteLevel")
        ids = {role: _role_id(backend, role, overrides or {}) for role in _ROLES}
        self.bos_id, self.eos_id = ids["bos_token_id"], ids["eos_token_id"]
        self.pad_id, self.image_id = ids["pad_token_id"], ids["image_token_id"]
        self._silent = frozenset(ids.values())
        self._added = {token: added.content for token, added in backend.get_added_tokens_decoder().items()}

    @classmethod
    def from_file(cls, path: str | Path, overrides: Mapping[str, int | None] | None = None) -> OcrTokenizer:
        """Read a tokenizer.json.

        Args:
            path: In the format of `tokenizers`.
            overrides: Ids by their names in config.json, see the class.

        Returns:
            The tokenizer.

        Raises:
            FileNotFoundError: There is no such file.
            TokenizerError: The file is not a tokenizer of this family.
        """
        text = Path(path).read_text(encoding="utf-8")
        try:
            backend = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception for every broken file
            raise TokenizerError(f"{path} is not a tokenizer.json: {error}") from error
        return cls(backend, overrides)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def added_ids(self) -> frozenset[int]:
        """Ids that `encode_plain` never returns."""
        return frozenset(self._added)

    def token_id(self, token: str) -> int:
        """Look up a token's id.

        Args:
            token: Its string in the vocabulary, such as `<|ref|>`.

        Returns:
            The id.

        Raises:
            TokenizerError: The vocabulary does not have it.
        """
        found = self._backend.token_to_id(token)
        if found is None:
            raise TokenizerError(f"the vocabulary lacks {token!r}")
        return found

    def encode_prompt(self, plan: ViewPlan, prompt: str, more_plans: Sequence[ViewPlan] = ()) -> list[int]:
        """Ids of a page and its prompt: bos, the image's placeholders, then the prompt's text.

        Special strings are recognised only in the words of the public prompts; in a query, or in a user's own prompt,
        they are plain text.

        Args:
            plan: Views of the page.
            prompt: Text after the image, from `shared.contract.prompts.prompt_for` or written by a user.
            more_plans: Of the pages after the first, for models that read several in one prompt.

        Returns:
            Input ids for the prefill.
        """
        num_image_tokens = sum(each.num_vision_tokens for each in (plan, *more_plans))
        ids = [self.bos_id] + [self.image_id] * num_image_tokens
        for part in split_prompt(prompt):
            ids += self.encode_trusted(part.text) if part.trusted else self.encode_plain(part.text)
        return ids

    def encode_trusted(self, text: str) -> list[int]:
        """Ids of text in which special strings are special tokens: templates and training targets."""
        return _encode(self._backend, text)

    def encode_plain(self, text: str) -> list[int]:
        """Ids of untrusted text; never special tokens, whatever the text contains."""
        return _encode(self._plain_backend, text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of an answer, with `<|ref|>` and similar tokens but without bos, eos, pad and image placeholders.

        Bytes that are not UTF-8 become U+FFFD; ids outside the vocabulary are skipped.
        """
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that an id adds to an answer, perhaps only a part of a character."""
        if token_id in self._silent:
            return b""
        added = self._added.get(token_id)
        if added is not None:
            return added.encode()
        token = self._backend.id_to_token(token_id) if token_id >= 0 else None
        return b"" if token is None else _from_byte_alphabet(token)

    @cached_property
    def _plain_backend(self) -> Tokenizer:
        """The same tokenizer without its added tokens, whose strings are then ordinary characters."""
        return Tokenizer.from_str(json.dumps({**self._definition, "added_tokens": [], "post_processor": None}))


def _role_id(backend: Tokenizer, role: str, overrides: Mapping[str, int | None]) -> int:
    """Id of a role: from config.json if it names one, otherwise that of the public string."""
    override = overrides.get(role)
    if override is not None:
        if backend.id_to_token(override) is None:
            raise TokenizerError(f"{role} is {override}, which the vocabulary lacks")
        return override
    found = backend.token_to_id(_ROLES[role])
    if found is None:
        raise TokenizerError(f"the vocabulary lacks {_ROLES[role]!r} and the configuration names no {role}")
    return found


def _encode(backend: Tokenizer, text: str) -> list[int]:
    """Ids of a text. Lone surrogates, which JSON can contain but UTF-8 cannot, become `?`."""
    return backend.encode(text.encode("utf-8", "replace").decode("utf-8"), add_special_tokens=False).ids


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """The byte for each character of a byte-level vocabulary (GPT-2's table).

    Printable Latin-1 characters are their own bytes; the other 68 bytes are the characters from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


def _from_byte_alphabet(token: str) -> bytes:
    """Bytes of a byte-level token; a token with any other character is encoded as UTF-8."""
    alphabet = _byte_alphabet()
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.encode()
