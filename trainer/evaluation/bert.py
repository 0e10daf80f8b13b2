"""BERTScore: how close a reading's words are to the truth's in meaning, by a language model. Only on request.

For tasks with several good answers, such as summaries; for reading, error rates say more. F1 of greedy matching
by cosine in the model's last layer, special tokens left out, no weights by rarity and no rescaling. Texts longer than
the model takes are embedded in pieces. Scores of different models cannot be compared, so records name the model.

Source: T. Zhang et al., BERTScore: Evaluating Text Generation with BERT, 2020.

Shape letters: L tokens, D width, S pieces, P tokens of a piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from shared.contract.text import normalise
from trainer.evaluation.results import EvaluationResult
from trainer.evaluation.run import ScoredPage
from trainer.reading.protocol import ReaderError

MODEL_KEY = "bert_score_model"
"""Key among a record's versions."""
PIECE_TOKENS = 510
"""Maximum input of most such models, without two special tokens."""
PIECES_AT_ONCE = 16


class BertScorer:
    """Scores pairs of texts.

    Args:
        model: Folder or repository of a model that transformers' AutoModel loads.
        device: Device of the model.

    Raises:
        ReaderError: There is no such model.
    """

    def __init__(self, model: str, device: torch.device | str = "cpu") -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model)
            loaded: torch.nn.Module = AutoModel.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise ReaderError(f"BERTScore cannot use {model}: {error}") from error
        self._device = torch.device(device)
        self._model = loaded.to(self._device).eval()
        self.name = Path(model).name if Path(model).is_dir() else model

    def f1(self, truth: str, reading: str) -> float:
        """BERTScore of one reading; 0 where one of the two is empty, 1 where both are."""
        expected_LD, read_LD = self._embedded(truth), self._embedded(reading)
        if not len(expected_LD) or not len(read_LD):
            return float(len(expected_LD) == len(read_LD))
        similarity = read_LD @ expected_LD.T
        precision = float(similarity.max(dim=1).values.mean())
        recall = float(similarity.max(dim=0).values.mean())
        return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0

    @torch.no_grad()
    def _embedded(self, text: str) -> Tensor:
        """Unit vectors `[L, D]` of a text's tokens."""
        ids = self._tokenizer(normalise(text), add_special_tokens=False, verbose=False)["input_ids"]
        if not ids:
            return torch.zeros(0, 1)
        start, end = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        pieces = [ids[place : place + PIECE_TOKENS] for place in range(0, len(ids), PIECE_TOKENS)]
        vectors = []
        for first in range(0, len(pieces), PIECES_AT_ONCE):
            batch = pieces[first : first + PIECES_AT_ONCE]
            longest = max(map(len, batch)) + 2
            pad = self._tokenizer.pad_token_id or 0
            ids_SP = torch.tensor([[start, *piece, end, *[pad] * (longest - len(piece) - 2)] for piece in batch])
            mask_SP = torch.tensor([[1] * (len(piece) + 2) + [0] * (longest - len(piece) - 2) for piece in batch])
            hidden_SPD = self._model(ids_SP.to(self._device), attention_mask=mask_SP.to(self._device)).last_hidden_state
            vectors += [hidden_PD[1 : 1 + len(piece)] for hidden_PD, piece in zip(hidden_SPD, batch, strict=True)]
        return torch.nn.functional.normalize(torch.cat(vectors).float(), dim=-1).cpu()


def with_bert_scores(result: EvaluationResult, pages: Sequence[ScoredPage], scorer: BertScorer) -> EvaluationResult:
    """The record with the mean BERTScore of each tier's pages, and the scorer's name among the versions."""
    readers = []
    for place, reader in enumerate(result.readers):
        scores: dict[str, list[float]] = {}
        for page in pages:
            if not page.scores:
                continue
            scores.setdefault(page.sample.tier, []).append(scorer.f1(page.sample.truth, page.readings[place].text))
        tiers = {tier: replace(score, bert_score=fmean(scores[tier])) for tier, score in reader.tiers.items()}
        readers.append(replace(reader, tiers=tiers))
    return replace(result, readers=tuple(readers), versions={**result.versions, MODEL_KEY: scorer.name})
