"""Some tokens of a prompt made louder or quieter, after the text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import ConfigDict, PositiveFloat
from pydantic.dataclasses import dataclass
from torch import Tensor


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Emphasis:
    """How the embeddings of class tokens change.

    Args:
        factor: 1 leaves them.
        way: `scale` multiplies them (iSeg); `away_from_empty` moves them away from the empty prompt's embeddings at the same
            positions, as prompt weights like `dog++` do (compel; DiffSegmenter).
        words: of a class's name, `all` its words or the `last` one alone.
    """

    factor: PositiveFloat
    way: Literal["scale", "away_from_empty"] = "scale"
    words: Literal["all", "last"] = "all"

    def __call__(self, embeddings: Tensor, positions: tuple[int, ...], empty: Tensor | None = None) -> Tensor:
        """Embeddings (1, n, C) with other values at the positions; `empty` are those of the empty prompt."""
        if self.way == "scale":
            return scaled(embeddings, positions, self.factor)
        assert empty is not None
        return away_from(embeddings, empty, positions, self.factor)


def scaled(embeddings: Tensor, positions: tuple[int, ...], factor: float) -> Tensor:
    """Embeddings (B, n, C) times `factor` at the positions."""
    changed = embeddings.clone()
    changed[:, list(positions)] *= factor
    return changed


def away_from(embeddings: Tensor, empty: Tensor, positions: tuple[int, ...], factor: float) -> Tensor:
    """e_empty + factor (e - e_empty) at the positions of (B, n, C)."""
    changed, chosen = embeddings.clone(), list(positions)
    changed[:, chosen] = empty[:, chosen] + factor * (embeddings[:, chosen] - empty[:, chosen])
    return changed


def class_positions(class_tokens: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
    """Every position of any class, ascending.

    >>> class_positions({1: (3, 4), 2: (1,)})
    (1, 3, 4)
    """
    return tuple(sorted({position for positions in class_tokens.values() for position in positions}))
