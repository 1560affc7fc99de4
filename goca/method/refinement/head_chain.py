"""Refinement by the heads' own self-attention, cleaned and applied one after the other (CLIPer, Sun et al., ICCV 2025)."""

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.errors import ModelError
from goca.method.calibration import ClassMaps
from goca.method.refinement.base import CONFIG, Needs, RefinementContext, SelfAttention
from goca.method.refinement.levels import Factors, Part, Places, choose
from goca.ops import blocks, resize

_EPSILON = 1e-5


@dataclass(frozen=True, config=CONFIG)
class HeadChain:
    """X <- A_1 A_2 ... A_n X, A_k a head's self-attention with small entries taken out; the last head acts first.

    Args:
        threshold: entries below it, relative to the largest of their key's column, become 0.
        layers: self-attention layers of one grid, names or globs; the last one's heads stand leftmost.
        combine: `chain` is the product, `mean` the mean of all heads, `select` one of them.
        head: which one `select` takes, counted through the layers from the last one on.
        factors, part, places: see `goca.method.refinement.levels.choose`.
    """

    threshold: Annotated[float, Field(ge=0, lt=1)]
    layers: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)
    combine: Literal["chain", "mean", "select"] = "chain"
    head: NonNegativeInt = 0
    factors: Factors | None = (1,)
    part: Part = "decoder"
    places: Places | None = None

    scale: ClassVar[str] = "kept"

    def __post_init__(self) -> None:
        if self.head and self.combine != "select":
            raise ValueError(f"head={self.head} is for combine=select; combine={self.combine} takes all heads")

    @property
    def needs(self) -> Needs:
        return Needs(self_attention=self.layers)

    def refine(self, maps: ClassMaps, context: RefinementContext) -> ClassMaps:
        """Maps on the layers' grid, on the scale that the products leave them."""
        what = "refinement: self-attention layers of the chain"
        layers = choose(context, self.layers, what, self.factors, self.part, self.places)
        grid = layers[0].grid
        if any(layer.grid != grid for layer in layers):
            raise ModelError(f"{what} must share one grid, and they have {', '.join(str(layer.grid) for layer in layers)}")
        stack = resize(maps.stack(with_supporting=bool(maps.supporting.any())), grid)
        if not len(stack):
            return maps.with_stack(stack)
        heads = [(layer, head) for layer in reversed(layers) for head in range(layer.heads)]
        scores = chain(stack.flatten(1).T, heads, self.threshold, self.combine, self.head, context.max_bytes)
        return maps.with_stack(scores.T.unflatten(1, grid))


def chain(
    scores: Tensor,
    heads: Sequence[tuple[SelfAttention, int]],
    threshold: float,
    combine: Literal["chain", "mean", "select"] = "chain",
    head: int = 0,
    max_bytes: int = 2**28,
) -> Tensor:
    """Scores (S, C) after the heads, leftmost factor first in the list; no product of two matrices is ever formed.

    Raises:
        ModelError: `select` names a head that is not there.
    """
    if combine == "select":
        if head >= len(heads):
            raise ModelError(f"refinement: head {head} was to be selected, and the layers have {len(heads)}")
        return apply_cleaned(scores, *heads[head], threshold, max_bytes)
    if combine == "mean":
        parts = [apply_cleaned(scores, layer, index, threshold, max_bytes) for layer, index in heads]
        return torch.stack(parts).mean(0)
    for layer, index in reversed(heads):
        scores = apply_cleaned(scores, layer, index, threshold, max_bytes)
    return scores


def apply_cleaned(scores: Tensor, layer: SelfAttention, head: int, threshold: float, max_bytes: int) -> Tensor:
    """A X for one head: divided by the largest entry of each column, small entries out, rows divided by their sum.

    A row that loses all its entries gives 0. One head's matrix is held while it fits `max_bytes`, else computed twice.
    """
    pixels = layer.grid[0] * layer.grid[1]

    def rows() -> Iterator[Tensor]:
        for block in blocks(pixels, 2 * 4 * pixels, min(max_bytes, 2**24)):
            (found,) = layer.head_rows(torch.arange(block.start, block.stop), [head])
            yield found

    kept = list(rows()) if 4 * pixels**2 <= max_bytes else None
    peaks = torch.zeros(())
    for block in kept or rows():
        peaks = torch.maximum(peaks.to(block), block.amax(0))
    parts = []
    for block in kept or rows():
        cleaned = block / (peaks + _EPSILON)
        cleaned = cleaned.masked_fill(cleaned < threshold, 0.0)
        parts.append((cleaned / (cleaned.sum(1, keepdim=True) + _EPSILON)) @ scores)
    return torch.cat(parts)
