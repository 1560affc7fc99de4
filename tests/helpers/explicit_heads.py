"""Self-attention that is at hand as maps of every head, with the interface that refinements use."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class ExplicitHeads:
    """Maps (H, S, S) on a grid; `rows` is the mean over heads."""

    def __init__(self, maps: Tensor, grid: tuple[int, int] | None = None) -> None:
        side = round(maps.shape[-1] ** 0.5)
        self.maps, self.grid, self.heads = maps, grid or (side, side), len(maps)

    def rows(self, index: Tensor) -> Tensor:
        return self.maps[:, index].mean(0)

    def head_rows(self, index: Tensor, heads: Sequence[int] | None = None) -> Iterator[Tensor]:
        for head in range(self.heads) if heads is None else heads:
            yield self.maps[head, index]


def random_heads(heads: int, side: int, seed: int = 0, sharpness: float = 2.0) -> ExplicitHeads:
    """Softmax rows of seeded random logits."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(heads, side * side, side * side, generator=generator)
    return ExplicitHeads(logits.softmax(-1))
