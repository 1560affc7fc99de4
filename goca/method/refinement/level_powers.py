"""Refinement by powers of each resolution's self-attention, mixed (FA-Seg, Che and Nguyen 2025)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.errors import ModelError
from goca.method.aggregation.mixture import Weight, level_weights
from goca.method.calibration import ClassMaps
from goca.method.refinement.base import CONFIG, Needs, RefinementContext, SelfAttention
from goca.method.refinement.levels import by_grid, choose
from goca.ops import blocks, minmax, resize, resize_adjoint


@dataclass(frozen=True, config=CONFIG)
class LevelPowers:
    """Y = sum over resolutions r of weight_r minmax(T_r^power X), T_r the mean self-attention of the layers of that resolution.

    Args:
        layers: self-attention layers, names or globs.
        weights: of each resolution, by how many times its side fits into the finest one's; a model with one grid gives it 1.
        power: how often T_r is applied.
    """

    weights: Annotated[dict[PositiveInt, Weight], Field(min_length=1)]
    layers: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)
    power: PositiveInt = 2

    @property
    def needs(self) -> Needs:
        return Needs(self_attention=self.layers)

    def refine(self, maps: ClassMaps, context: RefinementContext) -> ClassMaps:
        """Maps on the context's grid, between 0 and the sum of the weights."""
        stack = resize(maps.stack(with_supporting=bool(maps.supporting.any())), context.size)
        if not len(stack):
            return maps.with_stack(stack)
        levels = by_grid(choose(context, self.layers, "refinement: self-attention layers of the powers"))
        weights = level_weights(self.weights, list(levels))
        if not sum(weights.values()):
            raise ModelError("refinement: every resolution of this model has weight 0")
        total = torch.zeros_like(stack)
        for grid, layers in levels.items():
            if weights[grid]:
                moved = stack
                for _ in range(self.power):
                    moved = spread(moved, layers, context.max_bytes)
                total += weights[grid] / sum(weights.values()) * minmax(moved)
        return maps.with_stack(total)


def spread(maps: Tensor, layers: Sequence[SelfAttention], max_bytes: int) -> Tensor:
    """T X for maps (C, h, w): the mean over all layers' heads on their grid, keys repeated and queries resized bicubically.

    Repeated keys meet block sums of the maps, so that nothing larger than the layers' own rows is computed.
    """
    grid = layers[0].grid
    pixels = grid[0] * grid[1]
    values = resize_adjoint(maps, grid, "nearest").flatten(1).T  # (S, C)
    parts = []
    for block in blocks(pixels, 2 * 4 * pixels, max_bytes):
        index = torch.arange(block.start, block.stop)
        rows = layers[0].heads * layers[0].rows(index)
        for layer in layers[1:]:
            rows += layer.heads * layer.rows(index)
        parts.append((rows / sum(layer.heads for layer in layers)) @ values)
    moved = torch.cat(parts).T.unflatten(1, grid)
    return resize(moved, (maps.shape[-2], maps.shape[-1]), "bicubic")
