"""A second task while nano learns: name the characters in each vision token's square.

The decoder can learn its language without looking, and an encoder that the decoder ignores learns nothing: its
features can drift until no image shows in them. Naming characters where they are teaches the encoder directly; the
decoder then finds features worth looking at. The head travels with a run's shards, and is not part of a checkpoint.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Spotter(nn.Module):
    """Vision tokens to one logit per character of the charset."""

    def __init__(self, hidden_size: int, num_characters: int) -> None:
        super().__init__()
        self.head = nn.Linear(hidden_size, num_characters)
        # Most characters are in no square: start where the loss knows that. Weights of zero let an encoder that has
        # learnt already feel nothing of a head that has not.
        nn.init.constant_(self.head.bias, -6.0)
        nn.init.zeros_(self.head.weight)

    def loss(self, tokens_BGD: Tensor, labels_BGC: Tensor) -> Tensor:
        """Binary cross-entropy, summed over characters, per square that holds any.

        Shapes:
            tokens_BGD: vision tokens of each page's squares
            labels_BGC: bool, which characters stand there
        """
        # Scale-free, like the decoder's own first normalisation.
        normed = F.rms_norm(tokens_BGD.float(), tokens_BGD.shape[-1:])
        logits = self.head(normed)
        total = F.binary_cross_entropy_with_logits(logits.float(), labels_BGC.float(), reduction="sum")
        # A batch of blank pages has none: there, as if a few squares held some.
        return total / labels_BGC.any(-1).sum().clamp(min=max(labels_BGC.shape[0] * labels_BGC.shape[1] // 50, 1))


def label_squares(
    marks_M4: Tensor, placement_B23: Tensor, canvas_px: tuple[int, int], square_px: int, num_characters: int
) -> Tensor:
    """Which characters stand in which square of each page's canvas, after degradation moved the ink.

    Shapes:
        marks_M4: page, x, y, character; as of `pool.Batch`
        placement_B23: as `augment.Degradation` returns it
        canvas_px: height and width
        returns: bool `[B, rows, columns, C]`, squares of the canvas
    """
    height, width = canvas_px
    rows, columns = height // square_px, width // square_px
    page, x, y, character = marks_M4.unbind(1)
    # Scalars instead of a small tensor: copying one to the device would wait for all that runs there.
    source_M2 = torch.stack([(x + 0.5) / width * 2 - 1, (y + 0.5) / height * 2 - 1], 1)
    forward = placement_B23[page]
    (a, b), (c, d) = (row.unbind(1) for row in forward[:, :, :2].unbind(1))
    u, v = (source_M2 - forward[:, :, 2]).unbind(1)
    moved_M2 = torch.stack([d * u - b * v, a * v - c * u], 1) / (a * d - b * c)[:, None]
    places = (moved_M2 + 1) / 2
    column, row = (places[:, axis].mul(side / square_px).floor().long() for axis, side in enumerate((width, height)))
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    flat = ((page * rows + row.clamp(0, rows - 1)) * columns + column.clamp(0, columns - 1)) * num_characters
    labels = torch.zeros(len(placement_B23) * rows * columns * num_characters + 1, dtype=torch.bool, device=x.device)
    labels.index_fill_(0, torch.where(inside, flat + character, len(labels) - 1), True)
    return labels[:-1].view(len(placement_B23), rows, columns, num_characters)
