"""How strongly each pixel is guided: S-CFG's rate, which evens out the guidance of regions. Pure functions.

Every tensor may have a batch of pictures as its first axis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from goca.ops import gaussian_blur, resize

# The authors' kernel is exp(-(x / (2 * 0.5))^2): a Gaussian whose standard deviation is 0.5 * sqrt(2).
SMOOTHING = 0.5 * 2**0.5


def guidance_strength(unconditional: Tensor, conditional: Tensor) -> Tensor:
    """|eps_cond - eps_uncond| over all predicted channels, a learned variance included: (C, h, w) -> (h, w) float32."""
    return (conditional.float() - unconditional.float()).norm(dim=-3)


def mean_inside(strength: Tensor, masks: Tensor) -> Tensor:
    """Mean of a (h, w) map inside each mask (..., h, w): (...), 0 for an empty mask."""
    masks = masks.float()
    return (strength * masks).sum((-2, -1)) / (masks.sum((-2, -1)) + 1e-8)


def token_rates(strength: Tensor, regions: Tensor, foreground: Tensor) -> Tensor:
    """f / b_r: what brings each region's mean strength to the foreground's; 0 for tokens without pixels: (n,)."""
    inside = mean_inside(strength.unsqueeze(-3), regions)
    return mean_inside(strength, foreground).unsqueeze(-1) / (inside + 1e-8) * regions.flatten(-2).any(-1)


def rate_map(
    strength: Tensor,
    regions: Tensor,
    foreground: Tensor,
    scale: float,
    limits: tuple[float, float] = (0.8, 3.0),
    cap: float = 15.0,
) -> Tensor:
    """The factor on the guidance of every latent pixel: (h, w) float32.

    Args:
        strength: (h, w) from `guidance_strength`.
        regions: (n, f, f) bool; pixels where tokens tie get the sum of their rates, as in the authors' code.
        foreground: (f, f) bool.
        scale: the guidance scale; rate times scale stays at or below `cap`.
        limits: range of the rate; where the cap is lower, it wins. (1, 1) is plain guidance, to the last bit.
    """
    size = (strength.shape[-2], strength.shape[-1])
    regions, foreground = (resize(mask.float(), size, "nearest") for mask in (regions, foreground))
    rates = token_rates(strength, regions, foreground)
    spread = torch.einsum("...n,...nhw->...hw", rates, regions)
    low, high = (min(limit, cap / scale) for limit in limits)
    # Smoothing is a mean and stays inside; the second clamp only takes off its rounding.
    return gaussian_blur(spread.clamp(low, high), 3, SMOOTHING).clamp(low, high)


def guide(unconditional: Tensor, conditional: Tensor, rate: Tensor) -> Tensor:
    """eps_uncond + rate * (eps_cond - eps_uncond), written so that a rate of 1 gives eps_cond to the last bit.

    >>> float(guide(torch.tensor(0.1), torch.tensor(0.3), torch.tensor(1.0))) == float(torch.tensor(0.3))
    True
    """
    moved = conditional.float() + (rate - 1) * (conditional.float() - unconditional.float())
    return moved.to(conditional.dtype)
