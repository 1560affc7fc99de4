"""Inputs for tests of refinements: attention whose maps are at hand, and small class maps."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from goca.method.calibration import ClassMaps


@dataclass
class ExplicitAttention:
    """Self-attention given by its maps (S, S); notes which rows were asked for."""

    maps: Tensor
    grid: tuple[int, int]
    asked: list[int] = field(default_factory=list)

    @classmethod
    def square(cls, maps: Tensor) -> "ExplicitAttention":
        side = int(len(maps) ** 0.5)
        return cls(maps, (side, side))

    @classmethod
    def random(cls, grid: tuple[int, int], seed: int = 0) -> "ExplicitAttention":
        pixels = grid[0] * grid[1]
        return cls(torch.randn(pixels, pixels, generator=torch.Generator().manual_seed(seed)).softmax(1), grid)

    def rows(self, index: Tensor) -> Tensor:
        self.asked += index.tolist()
        return self.maps[index]


def class_maps(stack: Tensor) -> ClassMaps:
    """Maps (C + 1, h, w) of classes 1 ... C, the background last."""
    return ClassMaps(tuple(range(1, len(stack))), stack[:-1], stack[-1], stack[:-1])


def random_maps(count: int, size: tuple[int, int], seed: int = 0) -> ClassMaps:
    """Uniform random maps of `count` classes and the background."""
    return class_maps(torch.rand(count + 1, *size, generator=torch.Generator().manual_seed(seed)))
