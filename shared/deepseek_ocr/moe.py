"""Mixture of experts: the gate, the routed experts as stacked tensors, and the shared experts.

Owns the modules behind the public keys `mlp.*` of decoder layers. Knows nothing of attention or of sequences.

Shape letters: T tokens, H hidden width, E experts, K experts per token, I intermediate width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.deepseek_ocr.configuration import TextConfig


class Mlp(nn.Module):
    """Gated MLP with SiLU."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Gate(nn.Module):
    """Chooses experts for each token: the K largest of a softmax in float32.

    Source:
        `MoEGate` of deepseek-ai/DeepSeek-OCR with `scoring_func` softmax and `topk_method` greedy.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.routed_scaling_factor = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.zeros(config.n_routed_experts, config.hidden_size))

    def forward(self, x_TH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Route tokens.

        Args:
            x_TH: hidden states of the tokens, of any float type.

        Returns:
            Weights `[T, K]` (float32), experts `[T, K]` (int64), all probabilities `[T, E]` (float32).
        """
        probabilities_TE = F.linear(x_TH.float(), self.weight.float()).softmax(dim=-1)
        weights_TK, experts_TK = probabilities_TE.topk(self.top_k, dim=-1)
        if self.top_k > 1 and self.norm_topk_prob:
            weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + 1e-20)
        return weights_TK * self.routed_scaling_factor, experts_TK, probabilities_TE


class Experts(nn.Module):
    """All routed experts of a layer, stacked so that no step copies or gathers weights.

    `implementation` may be changed at any time; the results are the same up to rounding.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        experts, width, hidden = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.implementation = config.moe_implementation
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(self, x_TH: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
        """Compute the weighted sum of each token's chosen experts.

        Args:
            x_TH: hidden states of the tokens.
            weights_TK: float32, from `Gate`.
            experts_TK: int64, from `Gate`.

        Returns:
            `[T, H]` in the dtype of `x_TH`.

        Raises:
            ValueError: `implementation` is unknown.
        """
        if self.implementation == "grouped":
            return grouped_experts(x_TH, weights_TK, experts_TK, self.gate_up_proj, self.down_proj)
        if self.implementation == "dense":
            return dense_experts(x_TH, weights_TK, experts_TK, self.gate_up_proj, self.down_proj)
        if self.implementation == "stacked":
            return stacked_experts(x_TH, weights_TK, experts_TK, self.gate_up_proj, self.down_proj)
        raise ValueError(f"moe_implementation is {self.implementation!r}; known: grouped, dense, stacked")


def grouped_experts(
    x_TH: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_EJH: Tensor, down_EHI: Tensor
) -> Tensor:
    """Run each expert that has tokens. For CPUs, since the host reads the counts.

    Args:
        x_TH: hidden states of the tokens.
        weights_TK: float32, from `Gate`.
        experts_TK: int64, from `Gate`; all K of a token differ.
        gate_up_EJH: gate projections above up projections, J = 2 * I.
        down_EHI: down projections.

    Returns:
        `[T, H]`.
    """

    def apply(expert: int, x_TH: Tensor) -> Tensor:
        gate, up = F.linear(x_TH, gate_up_EJH[expert]).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, down_EHI[expert])

    return expert_by_expert(x_TH, weights_TK, experts_TK, apply)


def expert_by_expert(
    x_TH: Tensor, weights_TK: Tensor, experts_TK: Tensor, apply: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """`grouped_experts` with any way to compute an expert.

    Args:
        x_TH: hidden states of the tokens.
        weights_TK: float32, from `Gate`.
        experts_TK: int64, from `Gate`; all K of a token differ.
        apply: an expert's number and its tokens `[t, H]` to its outputs `[t, H]`.

    Returns:
        `[T, H]`.
    """
    top_k = experts_TK.shape[1]
    chosen = experts_TK.flatten()
    order = chosen.argsort(stable=True)
    sorted_x = x_TH[order // top_k]
    outputs = []
    start = 0
    for expert, count in enumerate(torch.bincount(chosen).tolist()):
        if count:
            outputs.append(apply(expert, sorted_x[start : start + count]))
            start += count
    # Back in the order of tokens, each sum adds its K terms in the same order, whatever the batch.
    by_token_TKH = torch.cat(outputs)[order.argsort()].view(*experts_TK.shape, -1)
    return (by_token_TKH * weights_TK.unsqueeze(-1)).sum(dim=1).to(x_TH.dtype)


def stacked_experts(
    x_TH: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_EJH: Tensor, down_EHI: Tensor
) -> Tensor:
    """Run all experts in two grouped products over sorted tokens. For training on CUDA: the host reads nothing.

    Args:
        x_TH: hidden states of the tokens.
        weights_TK: float32, from `Gate`.
        experts_TK: int64, from `Gate`; all K of a token differ.
        gate_up_EJH: gate projections above up projections, J = 2 * I.
        down_EHI: down projections.

    Returns:
        `[T, H]`.
    """
    sorted_experts, order = experts_TK.flatten().sort(stable=True)
    numbers_E = torch.arange(gate_up_EJH.shape[0], device=x_TH.device)
    ends_E = torch.searchsorted(sorted_experts, numbers_E, right=True, out_int32=True)
    # Autocast does not cover this product, and norms may have changed the tokens' type.
    sorted_x = x_TH[order // experts_TK.shape[1]].to(gate_up_EJH.dtype)
    gate, up = F.grouped_mm(sorted_x, gate_up_EJH.transpose(1, 2), offs=ends_E).chunk(2, dim=-1)
    outputs = F.grouped_mm(F.silu(gate) * up, down_EHI.transpose(1, 2), offs=ends_E)
    by_token_TKH = outputs[order.argsort()].view(*experts_TK.shape, -1)
    return (by_token_TKH * weights_TK.unsqueeze(-1)).sum(dim=1).to(x_TH.dtype)


def dense_experts(
    x_TH: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_EJH: Tensor, down_EHI: Tensor
) -> Tensor:
    """Compute every expert for every token in two matrix products. Static shapes; the host decides nothing.

    Args:
        x_TH: hidden states of the tokens.
        weights_TK: float32, from `Gate`.
        experts_TK: int64, from `Gate`; all K of a token differ.
        gate_up_EJH: gate projections above up projections, J = 2 * I.
        down_EHI: down projections.

    Returns:
        `[T, H]`.
    """
    num_experts, _, hidden = gate_up_EJH.shape
    weights_TE = weights_TK.new_zeros(x_TH.shape[0], num_experts).scatter(1, experts_TK, weights_TK)
    gate_TEI, up_TEI = F.linear(x_TH, gate_up_EJH.flatten(0, 1)).unflatten(-1, (num_experts, 2, -1)).unbind(2)
    activated_TEI = F.silu(gate_TEI) * up_TEI * weights_TE.unsqueeze(-1).to(x_TH.dtype)
    return F.linear(activated_TEI.flatten(1), down_EHI.transpose(0, 1).reshape(hidden, -1))


def load_balance_loss(probabilities_TE: Tensor, experts_TK: Tensor) -> Tensor:
    """Penalty that is 1 if all experts get an equal share of tokens, and grows as few experts get most of them.

    Args:
        probabilities_TE: softmax of the gate, float32.
        experts_TK: int64, from `Gate`.

    Returns:
        A scalar in float32.

    Source:
        Equations 4 to 6 of Switch Transformers (arXiv 2101.03961), shares counted over K choices.
    """
    num_experts = probabilities_TE.shape[1]
    share_E = F.one_hot(experts_TK, num_experts).float().mean(dim=(0, 1))
    return num_experts * (share_E * probabilities_TE.mean(dim=0)).sum()


class MixtureOfExperts(nn.Module):
    """Routed experts plus shared experts, which every token uses and which are one fused MLP."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate = Gate(config)
        self.experts = Experts(config)
        self.shared_experts: Mlp | None = None
        if config.n_shared_experts:
            self.shared_experts = Mlp(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Transform tokens of any leading shape.

        Args:
            x: `[..., H]`.

        Returns:
            The new hidden states, and the load-balance penalty while training (None otherwise).
        """
        x_TH = x.reshape(-1, x.shape[-1])
        weights_TK, experts_TK, probabilities_TE = self.gate(x_TH)
        out = self.experts(x_TH, weights_TK, experts_TK).view_as(x)
        if self.shared_experts is not None:
            out = out + self.shared_experts(x)
        return out, load_balance_loss(probabilities_TE, experts_TK) if self.training else None
