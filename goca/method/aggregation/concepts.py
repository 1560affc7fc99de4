"""Configuration of maps that a concept stream gives."""

from __future__ import annotations

from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ConceptMaps:
    """Products of each concept's attention output with the image's, in blocks of joint attention that have a text branch.

    Args:
        cross_layers: joint layers that concepts go through, in the model's order; all, so that the stream is not interrupted.
        layers: those whose scores count, names or globs; empty: all.
        last: of these only so many, from the end; null takes all.
        softmax: over the concepts, in every block, before blocks are averaged.
        normalise: channels of the concept vectors over concepts: minimum 0, sum 1.
        feature_size: cells along the model's square of the grid of the result; other shapes in proportion.
    """

    cross_layers: tuple[str, ...]
    layers: tuple[str, ...] = ()
    last: PositiveInt | None = None
    softmax: bool = True
    normalise: bool = False
    feature_size: PositiveInt = 64

    # What the rest of the program asks an aggregation for.
    @property
    def weighs_layers(self) -> bool:
        """Never: no layer is compared with a reference."""
        return False

    @property
    def reference(self) -> None:
        return None
