"""A head that drafts the tokens after the next one, so that a reader can check several in one step.

Owns the module and its file next to a checkpoint's weights. A draft only saves time: what is read is the decoder's own
choice, whatever the head says. The idea of a head on the last hidden state and the newest token, applied to its own
result for further tokens, is that of DeepSeek-V3's multi-token prediction (arXiv 2412.19437, section 2.2) and EAGLE
(arXiv 2401.15077), here without attention.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared.contract.identity import DRAFT_FILE
from shared.deepseek_ocr.checkpoint import CheckpointError
from shared.deepseek_ocr.decoder import RMSNorm


class DraftHead(nn.Module):
    """From a hidden state and the token chosen by it to the hidden state of the token after that.

    Args:
        hidden_size: Of the decoder.
        eps: Of its norms.
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.token_norm = RMSNorm(hidden_size, eps)
        self.mix = nn.Linear(2 * hidden_size, hidden_size, bias=False)
        self.mlp_norm = RMSNorm(hidden_size, eps)
        self.gate_up = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.down = nn.Linear(2 * hidden_size, hidden_size, bias=False)
        self.norm = RMSNorm(hidden_size, eps)

    def forward(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """Look one token further.

        Args:
            hidden: `[..., D]`, what the language head read for the token, or the result for the token before it.
            embedded: `[..., D]`, the token's embedding.

        Returns:
            `[..., D]`, for the language head.
        """
        x = self.mix(torch.cat([hidden, self.token_norm(embedded)], dim=-1))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        result: Tensor = self.norm(x + self.down(F.silu(gate) * up))
        return result


def save_draft_head(head: DraftHead, folder: Path) -> None:
    """Write a head in bfloat16 next to a checkpoint's weights."""
    state = {name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in head.state_dict().items()}
    save_file(state, str(folder / DRAFT_FILE))


def load_draft_head(folder: Path, hidden_size: int, eps: float) -> DraftHead | None:
    """Load a checkpoint's head, in float32.

    Args:
        folder: Of the checkpoint.
        hidden_size: Of its decoder.
        eps: Of its norms.

    Returns:
        The head in evaluation mode; None if the checkpoint has none.

    Raises:
        CheckpointError: The file is broken or another model's.
    """
    path = folder / DRAFT_FILE
    if not path.is_file():
        return None
    head = DraftHead(hidden_size, eps)
    try:
        head.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    except (SafetensorError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{path} is broken or another model's: {error}") from error
    return head.eval()
