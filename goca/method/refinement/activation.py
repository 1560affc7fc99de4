"""Refinement by the similarity of dense features."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.layer_names import resolve
from goca.method.calibration import ClassMaps
from goca.method.refinement.base import CONFIG, Needs, RefinementContext
from goca.method.refinement.propagation import propagate


@plain_dataclass(frozen=True)
class FeatureAffinity:
    """softmax(F F^T / sqrt(C)) of a feature (C, h, w), read like self-attention."""

    feature: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        height, width = self.feature.shape[1:]
        return height, width

    def rows(self, index: Tensor) -> Tensor:
        """As `SelfAttention.rows`."""
        flat = self.feature.flatten(1).float()  # (C, S)
        return torch.softmax(flat[:, index.to(flat.device)].T @ flat / flat.shape[0] ** 0.5, dim=-1)

    @property
    def heads(self) -> int:
        """One: features have no heads."""
        return 1

    def head_rows(self, index: Tensor, heads: Sequence[int] | None = None) -> Iterator[Tensor]:
        """As `SelfAttention.head_rows`."""
        yield self.rows(index)


@dataclass(frozen=True, config=CONFIG)
class Activation:
    """Pixels share scores with pixels of similar features: as `Affinity`, with T resized bicubically on both axes.

    Args:
        layers: layers whose dense features are compared, names or globs.
        order: how often T is applied.
        channels: `first` compares channel 0 alone, as the released code does after aggregation (docs/parity.md, P2).
    """

    layers: Annotated[tuple[str, ...], Field(min_length=1)]
    order: PositiveInt = 2
    channels: Literal["all", "first"] = "all"

    @property
    def needs(self) -> Needs:
        return Needs(features=self.layers)

    def affinities(self, context: RefinementContext) -> list[FeatureAffinity]:
        """One affinity per listed layer."""
        names = resolve(self.layers, context.features, "refinement: feature layers of the activation")
        count = 1 if self.channels == "first" else None
        return [FeatureAffinity(context.features[name][:count]) for name in names]

    def refine(self, maps: ClassMaps, context: RefinementContext) -> ClassMaps:
        """Maps on the context's grid, each between 0 and 1."""
        return propagate(maps, self.affinities(context), self.order, context, mode="bicubic")
