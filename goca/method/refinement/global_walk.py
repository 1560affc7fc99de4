"""Refinement by a random walk along self-attention whose heads are weighed by entropy, and along colours (NERVE)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.errors import ModelError
from goca.method.calibration import ClassMaps
from goca.method.refinement.base import CONFIG, Needs, RefinementContext, SelfAttention
from goca.method.refinement.levels import Factors, Part, choose
from goca.method.refinement.pamr import colour_weights, neighbours
from goca.ops import blocks, minmax, resize


@dataclass(frozen=True, config=CONFIG)
class GlobalWalk:
    """P <- (1 - alpha) G + alpha S P from P = G, S = beta sum_h w_h A_h + (1 - beta) S_local.

    A_h is a head's self-attention. The paper's pages do not give the rules for w_h and S_local; here w_h is the softmax over
    heads of -entropy / temperature, and S_local goes to the eight neighbours by likeness of colour, as pixel-adaptive
    refinement weighs them.

    Args:
        alpha: share of the walk against the maps given.
        beta: share of attention against neighbouring colours.
        steps: of the walk.
        layers, factors, part: self-attention layers of one grid (see `goca.method.refinement.levels.choose`).
        temperature: of the weights of heads, in nats.
    """

    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.8
    beta: Annotated[float, Field(ge=0, le=1)] = 0.7
    steps: PositiveInt = 20
    layers: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)
    factors: Factors | None = (1,)
    part: Part = "decoder"
    temperature: PositiveFloat = 0.5

    @property
    def needs(self) -> Needs:
        return Needs(self_attention=self.layers, image=True)

    def refine(self, maps: ClassMaps, context: RefinementContext) -> ClassMaps:
        """Maps on the layers' grid, each between 0 and 1."""
        what = "refinement: self-attention layers of the walk"
        layers = choose(context, self.layers, what, self.factors, self.part)
        grid = layers[0].grid
        if any(layer.grid != grid for layer in layers):
            raise ModelError(f"{what} must share one grid, and they have {', '.join(str(layer.grid) for layer in layers)}")
        if context.image is None:
            raise ModelError("refinement: the walk looks at colours, and the context holds no image")
        stack = resize(maps.stack(with_supporting=bool(maps.supporting.any())), grid)
        if not len(stack):
            return maps.with_stack(stack)
        entropies = torch.cat([head_entropies(layer, context.max_bytes) for layer in layers])
        weights = (-entropies / self.temperature).softmax(0)
        image = resize(context.image.float(), grid).to(stack.device)
        local = colour_weights(image, (1,))

        def local_step(scores: Tensor) -> Tensor:
            shown = scores.T.unflatten(1, grid)
            shifted = neighbours(shown, (1,))
            return sum((w * s for w, s in zip(local, shifted, strict=True)), torch.zeros_like(shown)).flatten(1).T

        attention = WeighedHeads(layers, weights, context.max_bytes)
        scores = walk(stack.flatten(1).T, attention, local_step, self.alpha, self.beta, self.steps)
        return maps.with_stack(minmax(scores.T.unflatten(1, grid)))


def walk(
    scores: Tensor,
    attention: Callable[[Tensor], Tensor],
    local: Callable[[Tensor], Tensor],
    alpha: float,
    beta: float,
    steps: int,
) -> Tensor:
    """Scores (S, C) after `steps` of the walk; what further steps change falls by alpha with each."""
    moved = scores
    for _ in range(steps):
        moved = (1 - alpha) * scores + alpha * (beta * attention(moved) + (1 - beta) * local(moved))
    return moved


def head_entropies(layer: SelfAttention, max_bytes: int) -> Tensor:
    """Mean over rows of -sum a ln a, for each head: (H,)."""
    pixels = layer.grid[0] * layer.grid[1]
    total = torch.zeros(layer.heads)
    for block in blocks(pixels, 3 * 4 * pixels, min(max_bytes, 2**24)):
        for head, rows in enumerate(layer.head_rows(torch.arange(block.start, block.stop))):
            total[head] += float(torch.special.entr(rows).sum())
    return total / pixels


class WeighedHeads:
    """The operator sum_h w_h A_h over the heads of all layers; rows are kept while they fit `max_bytes`."""

    def __init__(self, layers: Sequence[SelfAttention], weights: Tensor, max_bytes: int) -> None:
        self._layers, self._weights, self._max_bytes = layers, weights, max_bytes
        self._pixels = layers[0].grid[0] * layers[0].grid[1]
        self._kept = list(self._rows()) if 4 * self._pixels**2 <= max_bytes else None

    def __call__(self, scores: Tensor) -> Tensor:
        """The product with scores (S, C)."""
        return torch.cat([block @ scores for block in (self._kept or self._rows())])

    def _rows(self) -> Iterator[Tensor]:
        for block in blocks(self._pixels, 3 * 4 * self._pixels, min(self._max_bytes, 2**24)):
            index = torch.arange(block.start, block.stop)
            heads = (rows for layer in self._layers for rows in layer.head_rows(index))
            total = torch.zeros(())
            for weight, rows in zip(self._weights.tolist(), heads, strict=True):
                total = total.to(rows) + weight * rows
            yield total
