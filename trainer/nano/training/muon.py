"""Muon for nano's hidden matrices, AdamW for everything else.

Matrices of one shape are orthogonalised together as a batch: nano has some hundred small matrices, and one launch
each would cost more than their arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Quintic Newton-Schulz coefficients (Jordan et al., Muon, 2024): steepest slope at zero that still converges to
# singular values in about [0.7, 1.2] after five steps.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(update_NAB: Tensor, steps: int = 5) -> Tensor:
    """Replace each matrix's singular values by about one.

    Shapes:
        update_NAB: any float, a batch of matrices of one shape; returned as bfloat16 on a GPU, else as it came.
    """
    a, b, c = _NEWTON_SCHULZ
    x = update_NAB.bfloat16() if update_NAB.is_cuda else update_NAB
    transposed = x.size(-2) > x.size(-1)
    if transposed:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        quadratic = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, quadratic, x, beta=a)
    return x.mT if transposed else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; scaled so that an update has the size AdamW's would have (Moonlight, 2025).

    Takes matrices, stacks of matrices (experts, 3-D), and convolutions (4-D, as matrices over their inputs): what
    AdamW does to those is to move all weights together along one direction, which nothing behind a normalisation
    resists; the first run's features grew a thousandfold that way and no image showed in them any more.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 3e-3, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update all matrices once; `closure` is not supported."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(_matrix_shape(parameter), []).append(parameter)
            for shape, parameters in by_shape.items():
                self._step_shape(shape, parameters, group)

    def _step_shape(self, shape: tuple[int, int], parameters: list[Tensor], group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        grads = [p.grad for p in parameters if p.grad is not None]
        buffers = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in parameters]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        nesterov = torch._foreach_lerp(grads, buffers, momentum)
        stacked_NAB = torch.cat([update.reshape(-1, *shape) for update in nesterov])
        scale = 0.2 * max(shape) ** 0.5
        updates_NAB = orthogonalise(stacked_NAB).to(parameters[0].dtype)
        sizes = [p.numel() // (shape[0] * shape[1]) for p in parameters]
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        updates = [u.view_as(p) for p, u in zip(parameters, updates_NAB.split(sizes), strict=True)]
        torch._foreach_add_(parameters, updates, alpha=-group["lr"] * scale)


def _matrix_shape(parameter: Tensor) -> tuple[int, int]:
    if parameter.dim() == 4:
        return parameter.shape[0], parameter[0].numel()
    return parameter.shape[-2], parameter.shape[-1]


def build_optimizers(
    model: nn.Module, learning_rate: float, matrix_learning_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices and convolutions; AdamW for embeddings, heads, positions, norms and biases."""
    matrices, decayed, plain = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        table = any(
            word in name for word in ("embed", "lm_head", "rel_pos", "pos_embed", "position", "gate.weight", "head")
        )
        if parameter.dim() >= 2 and min(_matrix_shape(parameter)) >= 16 and not table:
            matrices.append(parameter)
        elif parameter.dim() >= 2 and not table:
            decayed.append(parameter)
        else:
            plain.append(parameter)
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.95),
        fused=next(model.parameters()).is_cuda,
    )
    return [Muon(matrices, lr=matrix_learning_rate, weight_decay=weight_decay), adamw]
