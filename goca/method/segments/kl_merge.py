"""Segments by merging attention distributions that are alike (DiffSeg, CVPR 2024; Seg4Diff without words, NeurIPS 2025)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from goca.method.aggregation.layers import nearest_rows, resize_keys
from goca.method.refinement.base import SelfAttention
from goca.ops import blocks, mean_of

_ROUNDS = 300  # of k-means, which ends when nothing changes


def symmetric_kl(a: Tensor, b: Tensor) -> Tensor:
    """1/2 sum (x - y)(ln x - ln y) over pixels, of every row of a (n, S) with every row of b (m, S): (n, m), float64.

    A sum and not a mean, and nothing is added inside the logarithms, unlike the divergence of `space_merge`. An exact 0, as
    between pixels that no window holds together, counts as the smallest number.
    """
    a, b = a.double(), b.double()
    log_a, log_b = (values.clamp(min=torch.finfo(values.dtype).tiny).log() for values in (a, b))
    own = (a * log_a).sum(1)[:, None] + (b * log_b).sum(1)
    return (own - a @ log_b.T - log_a @ b.T) / 2


class LevelMixture:
    """Rows of A = sum over resolutions of weight times that resolution's mean attention, each row a distribution before mixing.

    Args:
        levels: layers of each grid; their mean over layers and heads is taken.
        size: (h, w) of the result; keys are resized bilinearly, then divided by their sum, queries take the nearest row.
        weights: of each grid; None weighs a grid by its side. They are used as they are given.
    """

    def __init__(
        self,
        levels: Mapping[tuple[int, int], Sequence[SelfAttention]],
        size: tuple[int, int],
        weights: Mapping[tuple[int, int], float] | None = None,
        max_bytes: int = 2**28,
    ) -> None:
        total = sum(height for height, _ in levels)
        self.weights = dict(weights) if weights is not None else {grid: grid[0] / total for grid in levels}
        self._levels, self.size, self._max_bytes = levels, size, max_bytes

    def rows(self, index: Tensor) -> Tensor:
        """(len(index), h * w) float32 of those pixels."""
        total = torch.zeros(())
        for grid, layers in self._levels.items():
            source, inverse = nearest_rows(grid, self.size)[index].unique(return_inverse=True)
            keys = resize_keys(mean_of(layer.rows(source) for layer in layers), grid, self.size)
            keys = keys / keys.sum(1, keepdim=True)
            total = total.to(keys) + self.weights[grid] * keys[inverse.to(keys.device)]
        return total

    def all_rows(self) -> Iterator[Tensor]:
        """Every row, in blocks."""
        pixels = self.size[0] * self.size[1]
        for block in blocks(pixels, 4 * 8 * pixels, min(self._max_bytes, 2**25)):
            yield self.rows(torch.arange(block.start, block.stop))


def anchors(size: tuple[int, int], points: int) -> Tensor:
    """Positions (points^2, 2) of a lattice that is centred in the grid: (row, column).

    >>> anchors((64, 64), 16)[:2].tolist()
    [[1, 1], [1, 5]]
    """
    axes = []
    for side in size:
        gap = (side - 1) // (points - 1)
        axes.append((side - 1 - gap * (points - 1)) // 2 + gap * torch.arange(points))
    return torch.cartesian_prod(*axes)


def grow(mixture: LevelMixture, points: int, threshold: float) -> tuple[Tensor, Tensor]:
    """Each anchor's proposal, the mean of all pixels' rows nearer than the threshold, and how many they were.

    Returns:
        (points^2, S) float64 and (points^2,).
    """
    place = anchors(mixture.size, points)
    own = mixture.rows(place[:, 0] * mixture.size[1] + place[:, 1])
    total, hits = torch.zeros_like(own, dtype=torch.float64), torch.zeros(len(own), dtype=torch.float64, device=own.device)
    for rows in mixture.all_rows():
        near = (symmetric_kl(own, rows) < threshold).double()
        total += near @ rows.double()
        hits += near.sum(1)
    return total / hits[:, None], hits.long()


def merge(proposals: Tensor, threshold: float) -> Tensor:
    """In order, a proposal not yet taken becomes the mean of all nearer than the threshold, taken ones too."""
    near = (symmetric_kl(proposals, proposals) < threshold).fill_diagonal_(True)
    taken = torch.zeros(len(proposals), dtype=torch.bool, device=proposals.device)
    kept = []
    for number in range(len(proposals)):
        if not taken[number]:
            taken |= near[number]
            kept.append(proposals[near[number]].mean(0))
    return torch.stack(kept)


def kmeans(mixture: LevelMixture, centres: Tensor) -> Tensor:
    """Lloyd's k-means over all rows of the mixture, started at the proposals: the means of the clusters that have pixels."""
    centres = centres.double()
    member = torch.zeros(0)
    for _ in range(_ROUNDS):
        sums, counts, members = torch.zeros_like(centres), centres.new_zeros(len(centres)), []
        for rows in mixture.all_rows():
            nearest = torch.cdist(rows.double(), centres).argmin(1)
            members.append(nearest)
            sums.index_add_(0, nearest, rows.double())
            counts.index_add_(0, nearest, torch.ones_like(nearest, dtype=centres.dtype))
        centres = torch.where(counts[:, None] > 0, sums / counts[:, None], centres)
        before, member = member, torch.cat(members)
        if before.shape == member.shape and torch.equal(before, member):
            break
    return centres[counts > 0]


def token_distributions(token_maps: Tensor, power: float = 1.0) -> Tensor:
    """Token maps (n, h, w) as distributions over pixels (n, S): min-max over each pixel's tokens, then softmax over pixels."""
    return stretched_over_tokens(token_maps, power).flatten(1).softmax(1)


def stretched_over_tokens(token_maps: Tensor, power: float = 1.0) -> Tensor:
    """(n, h, w) between 0 and 1 over the tokens of each pixel."""
    shifted = token_maps - token_maps.amin(0, keepdim=True)
    return (shifted / (shifted.amax(0, keepdim=True) + 1e-6)) ** power
