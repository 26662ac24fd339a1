"""Layers of sequences as torch modules: (N, length, features) to the same, of any length."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROTARY_BASE = 10_000.0  # of the paper: the slowest pair of features turns once in 2 pi times as many places


class Position(nn.Module):
    """x + weight, one row for each place."""

    def __init__(self, length: int, features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(length, features))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight[: x.shape[1]]


class Attention(nn.Module):
    """Multi-head self-attention with the parameters of torch.nn.MultiheadAttention, and none of its cases."""

    def __init__(self, features: int, heads: int, *, causal: bool, rotary: bool):
        super().__init__()
        self.heads, self.causal, self.rotary = heads, causal, rotary
        self.in_proj_weight = nn.Parameter(torch.empty(3 * features, features))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * features))
        self.out_proj = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        # (N, length, 3 * features) to three of (N, heads, length, features of a head)
        question, key, value = projected.view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.rotary:
            question, key = turned(question), turned(key)
        taken = F.scaled_dot_product_attention(question, key, value, is_causal=self.causal)
        out: Tensor = self.out_proj(taken.transpose(1, 2).flatten(2))
        return out


class GRU(nn.GRU):
    """torch.nn.GRU, of which the state at each element is all that comes out."""

    def __init__(self, features: int, out: int):
        super().__init__(features, out, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        states: Tensor
        states, _ = super().forward(x)
        return states


def turned(x: Tensor) -> Tensor:
    """Turn the pair of features (i, i + half) of each place by an angle proportional to the place.

    (..., length, features of a head). Source: Su et al. 2021 (arXiv:2104.09864).
    """
    length, half = x.shape[-2], x.shape[-1] // 2
    speed = ROTARY_BASE ** (-torch.arange(half, device=x.device, dtype=x.dtype) / half)
    angle = torch.outer(torch.arange(length, device=x.device, dtype=x.dtype), speed)  # (length, half)
    sine, cosine = angle.sin(), angle.cos()
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)
