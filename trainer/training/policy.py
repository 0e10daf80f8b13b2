"""Training by rewards: TRL's GRPO loop on pages. The only file that imports `trl`.

TRL owns groups, advantages, losses, clipping and the reference adapter. What it cannot do is read a page of ours: it
asks a processor of transformers for pixels, and calls `generate` and a fused head with them, while our pages enter as
embeddings that were computed once. So a prompt is a page's number here, and two steps are replaced: the rollout,
through TRL's own hook, and the probabilities of tokens, through a method that is not public. For that one the
dependency is pinned to a minor release.

Shape letters: B answers, L tokens, C tokens of the longest answer, D decoder width, V vocabulary, N positions.

Source: Shao et al., DeepSeekMath, 2024 (GRPO); TRL 1.15.0, `GRPOTrainer`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerFast
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from shared.contract.answer import FinishReason
from shared.deepseek_ocr.loss import PIECE_LOGITS
from shared.deepseek_ocr.tokenizer import OcrTokenizer
from trainer.evaluation.page_test_file import load_page_tests, told_skipped
from trainer.evaluation.page_tests import derive_tests
from trainer.reading.sampling import Sampling, can_be_recorded, draw_answers
from trainer.reading.step_program import StepPrograms
from trainer.rewards.rewards import REWARDS, Judged
from trainer.training.checked import CheckedTrainer, RunParts, base_of
from trainer.training.errors import TrainingCode, TrainingError
from trainer.training.reward_options import RewardOptions

ANSWER, FINISH = "answer", "finish"
"""What the rollout tells the rewards."""
KEPT_FIGURES = ("reward", "reward_std", "frac_reward_zero_std", "entropy", "kl", "completions/mean_length")
"""Of TRL's figures, those that the log has next to the loss and each reward's mean."""


@dataclass(frozen=True, slots=True)
class RewardParts:
    """What training by rewards needs in addition to a run's parts.

    Attributes:
        rewards: options.
        tokenizer: of the model.
        max_new_tokens: limit of an answer.
        device: of the model.
    """

    rewards: RewardOptions
    tokenizer: OcrTokenizer
    max_new_tokens: int
    device: torch.device


class PolicyTrainer(CheckedTrainer, GRPOTrainer):
    """The loop; one per run, of one process."""

    def __init__(self, model: PeftModel, parts: RunParts, reward_parts: RewardParts, **kwargs: Any) -> None:
        assert parts.encoder is not None, "the encoder is trained"
        self._parts = parts
        self._encoder = parts.encoder
        self._reward_parts = reward_parts
        pages = Dataset.from_dict({"prompt": [str(row) for row in range(len(parts.samples))]})
        given = reward_parts.rewards.page_tests
        named = load_page_tests([given]) if given is not None else None
        if named is not None and named.skipped:
            raise TrainingError(
                TrainingCode.OPTION_INVALID,
                f"{given} has tests that cannot be judged{told_skipped(named.skipped)}",
                "take them out of the file",
            )
        self._tests = [
            derive_tests(sample.text) if named is None else named.of_sample(sample.name) for sample in parts.samples
        ]
        if named and not any(self._tests):
            raise TrainingError(
                TrainingCode.OPTION_INVALID,
                f"no test of {given} names a page of the set",
                f"write its names, such as {parts.samples[0].name!r}",
            )
        is_recorded = reward_parts.device.type == "cuda" and can_be_recorded(base_of(model))
        self._programs = StepPrograms() if is_recorded else None
        weights = {name: weight for name, weight in reward_parts.rewards.weights.items() if weight}
        rewards: list[Any] = [self._reward(name) for name in weights]
        kwargs["args"].reward_weights = list(weights.values())
        with warnings.catch_warnings():
            # The rollout hook may change between releases, which the pin allows for.
            warnings.filterwarnings("ignore", message=".*rollout_func.*", category=UserWarning)
            super().__init__(
                model=model,
                reward_funcs=rewards,
                train_dataset=pages,
                # Unused, but the library requires one: `evaluate` reads pages instead of computing losses.
                eval_dataset=pages if parts.check else None,
                processing_class=_numbers_alone(reward_parts.tokenizer),
                rollout_func=self._roll_out,
                **kwargs,
            )

    def _reward(self, name: str) -> Callable[..., list[float | None]]:
        judge = REWARDS[name]

        def rewards(
            prompts: Sequence[str], answer: Sequence[str], finish: Sequence[str], **_: Any
        ) -> list[float | None]:
            rows = map(int, prompts)
            return [
                judge(Judged(self._parts.samples[row].text, text, FinishReason(reason), self._tests[row]))
                for row, text, reason in zip(rows, answer, finish, strict=True)
            ]

        rewards.__name__ = name
        return rewards

    def _roll_out(self, prompts: list[str], _: Any) -> dict[str, Any]:
        """Draw the answers of an update; each page stands as often in `prompts` as it is to be answered."""
        rows = list(map(int, prompts))
        pages = list(dict.fromkeys(rows))
        samples = [self._parts.samples[row] for row in pages]
        options, device = self._reward_parts.rewards, self._reward_parts.device
        features = dict(zip(pages, self._encoder.features(pages, device), strict=True))
        drawn = draw_answers(
            base_of(self.adapter_model),
            self._reward_parts.tokenizer,
            [self._parts.collator.prompt_ids(sample) for sample in samples],
            lambda index: features[pages[index]],
            Sampling(options.num_answers, options.temperature, self._reward_parts.max_new_tokens),
            device,
            self._programs,
        )
        left = {row: iter(answers) for row, answers in zip(pages, drawn, strict=True)}
        answers = [next(left[row]) for row in rows]
        return {
            "prompt_ids": [[row] for row in rows],
            # An answer without a token cannot be: the end is one.
            "completion_ids": [list(answer.tokens) for answer in answers],
            "logprobs": None,
            ANSWER: [answer.text for answer in answers],
            FINISH: [answer.finish_reason.value for answer in answers],
        }

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Log probabilities and entropies of answers `[B, C]`; TRL's method, on embeddings.

        `input_ids` are `[B, 1 + C]`: a page's number, then an answer, padded on the right.
        """
        del attention_mask, compute_aux_loss  # padding comes after the answer, and TRL masks it; the aux loss is off
        size = batch_size or len(input_ids)
        parts = [
            self._scored(base_of(self.accelerator.unwrap_model(model)), chunk_BL, logits_to_keep)
            for chunk_BL in input_ids.split(size)
        ]
        log_probs_BC, entropies_BC = (torch.cat(each) for each in zip(*parts, strict=True))
        return log_probs_BC, entropies_BC if compute_entropy else None, None

    def _scored(self, base: Any, numbered_BL: Tensor, num_kept: int) -> tuple[Tensor, Tensor]:
        device = numbered_BL.device
        rows, answers_BC = numbered_BL[:, 0].tolist(), numbered_BL[:, -num_kept:]
        prompts = [self._parts.collator.prompt_ids(self._parts.samples[row]) for row in rows]
        starts_B = torch.tensor(list(map(len, prompts)), device=device)
        ids_BL = torch.full((len(rows), int(starts_B.max()) + num_kept), self._reward_parts.tokenizer.pad_id)
        for row, prompt in enumerate(prompts):
            ids_BL[row, : len(prompt)] = torch.tensor(prompt)
        # The position before a token predicts it.
        places_BC = starts_B[:, None] - 1 + torch.arange(num_kept, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            embeds_BLD = base.embed_inputs(ids_BL.to(device), self._encoder.features(rows, device))
            # Apart from the prompts: an image token that the model wrote has no features.
            answers_BCD = base.embed_inputs(answers_BC, []).to(embeds_BLD.dtype)
            embeds_BLD = embeds_BLD.scatter(1, (places_BC + 1)[..., None].expand_as(answers_BCD), answers_BCD)
            positions_1L = torch.arange(ids_BL.shape[1], device=device)[None]
            hidden_BLD, _ = base.decode(embeds_BLD, positions_1L)
            hidden_BCD = hidden_BLD.gather(1, places_BC[..., None].expand(-1, -1, hidden_BLD.shape[-1]))
            scored = _score_tokens(hidden_BCD.flatten(0, 1), answers_BC.flatten(), base.lm_head, self.temperature)
        log_probs_BC, entropies_BC = (each.view_as(answers_BC) for each in scored)
        return log_probs_BC, entropies_BC

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """TRL's step; raises `TrainingError` where memory does not hold it."""
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        except torch.OutOfMemoryError as error:
            answers = self.args.per_device_train_batch_size
            raise TrainingError(
                TrainingCode.OUT_OF_MEMORY,
                f"the device's memory does not hold {answers} answers at once",
                "lower --batch-size or --num-answers, or add --gradient-checkpointing",
            ) from error

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log TRL's figures by short names; see `KEPT_FIGURES`."""
        # TRL keeps several dozen, most of them of what is not used here.
        figures = self._metrics["train"]
        for name in [name for name in figures if name not in KEPT_FIGURES]:
            words = name.split("/")
            if words[0] == "rewards" and words[-1] == "mean":
                figures[f"reward_{words[1]}"] = figures[name]
            del figures[name]
        for name in ("completions/mean_length",):
            if name in figures:
                figures["answer_tokens"] = figures.pop(name)
        super().log(logs, start_time)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: checkpoints hold the adapter alone."""

    def _send_telemetry(self) -> None:
        """Send nothing."""


def policy_arguments(arguments: Mapping[str, Any], rewards: RewardOptions, max_new_tokens: int) -> GRPOConfig:
    """TRL's arguments for those of a run (`trainer.training.setup`), whose batches are pages."""
    per_step = int(arguments["per_device_train_batch_size"]) * rewards.num_answers
    return GRPOConfig(
        **{
            **arguments,
            "per_device_train_batch_size": per_step,
            "per_device_eval_batch_size": per_step,
        },
        num_generations=rewards.num_answers,
        temperature=rewards.temperature,
        max_completion_length=max_new_tokens,
        loss_type=rewards.loss,
        beta=rewards.kl_weight,
        gradient_checkpointing=False,  # the backend's own
    )


def _score_tokens(
    hidden_ND: Tensor, tokens_N: Tensor, head: Callable[[Tensor], Tensor], temperature: float
) -> tuple[Tensor, Tensor]:
    """Log probabilities and entropies `[N]`, without having all logits in memory."""

    def scored(piece_ND: Tensor, tokens_N: Tensor) -> tuple[Tensor, Tensor]:
        logs_NV = (head(piece_ND).float() / temperature).log_softmax(dim=-1)
        entropies_N = -(logs_NV.exp() * logs_NV).sum(dim=-1)
        return logs_NV.gather(1, tokens_N[:, None])[:, 0], entropies_N

    size = max(PIECE_LOGITS // head(hidden_ND[:1]).shape[-1], 1)
    if len(tokens_N) <= size:
        return scored(hidden_ND, tokens_N)
    pieces = zip(hidden_ND.split(size), tokens_N.split(size), strict=True)
    parts = [checkpoint(scored, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _numbers_alone(tokenizer: OcrTokenizer) -> PreTrainedTokenizerFast:
    """TRL asks a tokenizer for the ids of padding and end, and for texts that nothing reads here."""
    named = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
    backend = Tokenizer(WordLevel(named, unk_token=next(iter(named))))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{name: name for name in named})
