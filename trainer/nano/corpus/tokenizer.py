"""Nano's vocabulary: a small byte-level BPE whose tokens are close to what is seen on a page.

Digits, punctuation and line breaks are separate tokens, and no token is long, so that a token's position on the page
is near the pixels it was read from. Any UTF-8 text survives a round trip.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from shared.deepseek_ocr.tokenizer import BOS, EOS, GROUNDING_TOKENS, IMAGE, PAD

SPECIAL_TOKENS = (BOS, EOS, PAD, IMAGE, *GROUNDING_TOKENS)
"""In the order of their ids, from 0."""

# A word with the space before it; one digit; one sign, with the space before it; one white-space character.
_PIECES = r" ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]|\s"


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, max_token_chars: int = 6, min_frequency: int = 2
) -> Tokenizer:
    """Learn a vocabulary.

    Args:
        texts: sample texts as on pages, without special strings.
        vocab_size: number of ids, including special tokens and the 256 bytes.
        max_token_chars: longest token in byte-level characters (its leading space and each byte beyond ASCII count).
        min_frequency: rarer pairs are not merged.

    Returns:
        The tokenizer; `save` writes the tokenizer.json that `OcrTokenizer` reads.

    Raises:
        ValueError: `vocab_size` leaves no room for the bytes and special tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(SPECIAL_TOKENS) + len(alphabet)
    if vocab_size < smallest:
        raise ValueError(f"a vocabulary needs at least {smallest} ids, not {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(alphabet),
        max_token_length=max_token_chars + 1,  # the library takes the first length that is too long
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
