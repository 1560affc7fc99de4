"""Refinement by segments of the self-attention (after DiffSeg, Tian et al., CVPR 2024)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.layer_names import resolve
from goca.method.calibration import ClassMaps
from goca.method.refinement.base import CONFIG, Needs, RefinementContext, SelfAttention
from goca.method.refinement.propagation import affinity_rows
from goca.ops import resize

_EPSILON = 1e-4


@dataclass(frozen=True, config=CONFIG)
class SpaceMerge:
    """Pixels are grouped by what they attend to; a segment takes the class that its pixels favour, wholly or not at all.

    Maps become 0 or 1; pixels of a segment without a favourite belong to no class (docs/parity.md, P4).

    Args:
        layers: self-attention layers, names or globs.
        grid: distance in pixels of the anchors that segments grow from.
        threshold: divergence below which two distributions count as one.
        merges: rounds that join segments, after the one that forms them.
        min_score: mean class score a segment must exceed.
    """

    layers: Annotated[tuple[str, ...], Field(min_length=1)]
    grid: PositiveInt = 4
    threshold: PositiveFloat = 2e-4
    merges: NonNegativeInt = 2
    min_score: float = 0.5

    @property
    def needs(self) -> Needs:
        return Needs(self_attention=self.layers)

    def refine(self, maps: ClassMaps, context: RefinementContext) -> ClassMaps:
        """Maps of 0 and 1 on the context's grid."""
        names = resolve(self.layers, context.self_attention, "refinement: self-attention layers of the space merge")
        segments = self.segments([context.self_attention[name] for name in names], context.size, context.max_bytes)
        stack = resize(maps.stack(), context.size)
        return maps.with_stack(label_segments(stack, segments.to(stack.device), self.min_score))

    def segments(self, affinities: Sequence[SelfAttention], size: tuple[int, int], max_bytes: int) -> Tensor:
        """Segment of each pixel (h, w): the proposal that gives it the most attention."""
        proposals = self._grow(affinities, size, max_bytes)
        for _ in range(self.merges):
            proposals = self._merge(proposals)
        return proposals.argmax(0).unflatten(0, size)

    def _grow(self, affinities: Sequence[SelfAttention], size: tuple[int, int], max_bytes: int) -> Tensor:
        """Each anchor's attention averaged with that of all pixels like it, as distributions: (anchors, pixels)."""
        pixels = torch.arange(size[0] * size[1]).view(size)
        picked = pixels[:: self.grid, :: self.grid].flatten()
        anchors = torch.cat([rows for _, rows in affinity_rows(affinities, size, max_bytes, picked)])
        total = torch.zeros_like(anchors)
        for _, rows in affinity_rows(affinities, size, max_bytes):
            total += (divergence(anchors, rows) < self.threshold).to(rows.dtype) @ rows
        return total / total.sum(1, keepdim=True)

    def _merge(self, proposals: Tensor) -> Tensor:
        """In order, each proposal not yet taken is averaged with all the others that are like it and not yet taken."""
        alike = (divergence(proposals, proposals) < self.threshold).fill_diagonal_(True)
        free = torch.ones(len(proposals), dtype=torch.bool, device=proposals.device)
        merged = []
        for i in range(len(proposals)):
            if free[i]:
                group = alike[i] & free
                free &= ~group
                merged.append(proposals[group].mean(0))
        return torch.stack(merged)


def divergence(a: Tensor, b: Tensor) -> Tensor:
    """Symmetric Kullback-Leibler divergence, as a mean over the S entries, of rows (n, S) and (m, S): (n, m).

    sum (a - b)(log a - log b), with 1e-4 inside the logarithms, written as matrix products.
    """
    a, b = a.double(), b.double()
    log_a, log_b = (a + _EPSILON).log(), (b + _EPSILON).log()
    own = (a * log_a).sum(1)[:, None] + (b * log_b).sum(1)
    return (own - a @ log_b.T - log_a @ b.T) / a.shape[1]


def label_segments(maps: Tensor, segments: Tensor, min_score: float) -> Tensor:
    """1 for the map with the highest mean in each segment if that exceeds `min_score`, else 0: (C, h, w)."""
    members = segments.flatten()
    count = int(members.max()) + 1
    sums = maps.new_zeros(len(maps), count).index_add_(1, members, maps.flatten(1))
    means, best = (sums / members.bincount(minlength=count)).max(0)  # (segments,); empty segments have no pixel to label
    labels = torch.zeros_like(sums).scatter_(0, best[None], (means > min_score).to(sums.dtype)[None])
    return labels[:, members].view(maps.shape)
