"""From layer maps to one map per token: resize, weigh, add, and share each pixel out among all tokens (paper section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from goca.ops import resize


def weigh_heads(attention: Tensor, weights: Tensor) -> Tensor:
    """A[i, q] = sum_h weight[i, h] A_h[i, q]: (..., H, S, n) and (..., H, S) -> (..., S, n)."""
    return (attention * weights.unsqueeze(-1)).sum(-3)  # on a CPU several times as fast as einsum, which permutes first


def resize_map(layer_map: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Bilinear resize (align_corners False) of one layer's map: (B, h * w, n) -> (B, n, *size)."""
    return resize(layer_map.transpose(1, 2).unflatten(2, grid), size)


def share_out(total: Tensor) -> Tensor:
    """Clamp at 0 and divide each pixel by its sum over all tokens, special and padding ones included: (B, n, h, w).

    A pixel where every token is 0 stays 0.
    """
    total = total.clamp(min=0)
    mass = total.sum(1, keepdim=True)
    return torch.where(mass > 0, total / mass, torch.zeros_like(total))
