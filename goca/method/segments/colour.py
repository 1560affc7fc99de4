"""Segments by colour alone: k-means over the pixels' colours, and over their places where compactness is wanted (SLIC)."""

from __future__ import annotations

import torch
from torch import Tensor


def colour_segments(image: Tensor, count: int, compactness: float = 0.0, iterations: int = 10) -> Tensor:
    """Segment numbers (H, W) below `count`; some may have no pixel.

    With compactness this is the clustering of SLIC (Achanta et al., TPAMI 2012) in RGB, without its limit to a neighbourhood
    and its rule that segments are connected.

    Args:
        image: (3, H, W) in [-1, 1].
        count: segments to begin with, from pixels on a square grid; rounded to the next square number below.
        compactness: how much a picture side counts against the whole range of a colour channel; 0 leaves places out.
        iterations: of Lloyd's algorithm.
    """
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    places = 2 * compactness * torch.stack([y, x]).to(image)
    points = torch.cat([image.float(), places.float()]).flatten(1).T  # (H * W, 5)
    side = max(1, int(count**0.5))
    rows, columns = (((torch.arange(side) + 0.5) * length / side).long() for length in (height, width))
    centres = points[(rows[:, None] * width + columns).flatten().to(points.device)]
    members = _nearest(points, centres)
    for _ in range(iterations):
        sums = torch.zeros_like(centres).index_add_(0, members, points)
        sizes = members.bincount(minlength=len(centres))[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
        moved = _nearest(points, centres)
        if torch.equal(moved, members):
            break
        members = moved
    return members.view(height, width)


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    return torch.cdist(points, centres).argmin(1)
