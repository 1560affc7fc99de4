"""Refinement by self-attention whose rows are sharpened, applied many times (iSeg, Sun et al. 2024)."""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.errors import ModelError
from goca.method.calibration import ClassMaps
from goca.method.refinement.base import CONFIG, Needs, RefinementContext, SelfAttention
from goca.method.refinement.levels import Factors, Part, Places, choose
from goca.ops import blocks, mean_of, resize


@dataclass(frozen=True, config=CONFIG)
class EntropyAffinity:
    """X <- T X, each map brought to minimum 0 and sum 1 after every product; T is sharpened by a step down its entropy.

    Args:
        entropy: length of the step; 0 takes none.
        iterations: how often T is applied.
        layers: self-attention layers of one grid, names or globs.
        heads: which heads of a layer are averaged, from 0; null takes all, as do layers that lack one of them.
        factors, part, places: see `goca.method.refinement.levels.choose`.
    """

    entropy: NonNegativeFloat
    iterations: PositiveInt = 10
    layers: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)
    heads: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    factors: Factors | None = (1,)
    part: Part = "decoder"
    places: Places | None = None

    scale: ClassVar[str] = "other"

    @property
    def needs(self) -> Needs:
        return Needs(self_attention=self.layers)

    def refine(self, maps: ClassMaps, context: RefinementContext) -> ClassMaps:
        """Maps on the layers' grid, each with minimum 0 and sum 1."""
        what = "refinement: self-attention layers of the sharpened affinity"
        layers = choose(context, self.layers, what, self.factors, self.part, self.places)
        grid = layers[0].grid
        if any(layer.grid != grid for layer in layers):
            raise ModelError(f"{what} must share one grid, and they have {', '.join(str(layer.grid) for layer in layers)}")
        stack = resize(maps.stack(with_supporting=bool(maps.supporting.any())), grid)
        if not len(stack):
            return maps.with_stack(stack)
        sharpened = Sharpened(layers, self.heads, self.entropy, context.max_bytes)
        scores = share_out_over_pixels(stack.flatten(1).T)  # (S, C)
        for _ in range(self.iterations):
            scores = share_out_over_pixels(sharpened(scores))
        return maps.with_stack(scores.T.unflatten(1, grid))


def share_out_over_pixels(scores: Tensor) -> Tensor:
    """Columns (S, C) moved to minimum 0 and divided by their sum; a constant column becomes zeros."""
    scores = scores - scores.amin(0)
    total = scores.sum(0)
    return torch.where(total > 0, scores / total, torch.zeros_like(scores))


class Sharpened:
    """The operator T of `EntropyAffinity`; its rows are kept while they fit `max_bytes`, else computed for each product.

    T1 = T0 / (largest entry of each key's column); T = max(T1 + step (1 + ln T1) / ln 10, 0), where 0 stays 0, each row
    divided by its sum.
    """

    def __init__(self, layers: Sequence[SelfAttention], heads: Sequence[int] | None, step: float, max_bytes: int) -> None:
        self._layers, self._heads, self._step, self._max_bytes = layers, heads, step, max_bytes
        self._pixels = layers[0].grid[0] * layers[0].grid[1]
        plain = list(self._plain()) if 4 * self._pixels**2 <= max_bytes else None
        peaks = torch.zeros(())
        for rows in plain or self._plain():
            peaks = torch.maximum(peaks.to(rows), rows.amax(0))
        self._peaks = peaks
        kept: list[Tensor] = []
        while plain:  # each block's plain rows are let go before the next one is sharpened
            kept.append(self._sharpen(plain.pop(0)))
        self._kept = kept or None

    def __call__(self, scores: Tensor) -> Tensor:
        """T X for scores (S, C)."""
        rows = self._kept or map(self._sharpen, self._plain())
        return torch.cat([block @ scores for block in rows])

    def _plain(self) -> Iterator[Tensor]:
        """Rows of T0: the mean over layers of the mean over the heads that count."""
        for block in blocks(self._pixels, 3 * 4 * self._pixels, min(self._max_bytes, 2**24)):
            index = torch.arange(block.start, block.stop)
            yield mean_of(_mean_rows(layer, index, self._heads) for layer in self._layers)

    def _sharpen(self, rows: Tensor) -> Tensor:
        rows = rows / self._peaks
        if self._step:
            step = torch.where(rows > 0, 1 + rows.log(), 0) * (self._step / math.log(10))
            rows = (rows + step).clamp(min=0)
        total = rows.sum(1, keepdim=True)
        return torch.where(total > 0, rows / total, rows)


def _mean_rows(layer: SelfAttention, index: Tensor, heads: Sequence[int] | None) -> Tensor:
    if heads is None or max(heads) >= layer.heads:
        return layer.rows(index)
    chosen = list(layer.head_rows(index, heads))
    return torch.stack(chosen).mean(0)
