"""Aggregation of attention over heads and layers: configuration here, one pure function per method in the modules beside."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, PositiveInt, field_validator
from pydantic.dataclasses import dataclass

from goca.method.aggregation import heads as head_methods
from goca.method.aggregation import layers as layer_methods


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Aggregation:
    """How the attention of one forward becomes one map per token.

    Args:
        heads: weight of each head at each pixel, a name of `goca.method.aggregation.heads.METHODS` or a dotted path.
        layers: weight of each layer, a name of `goca.method.aggregation.layers.METHODS` or a dotted path, or equal weights:
            `average` over all observed layers, `manual` over a hand-set list (they differ in `cross_layers` alone).
        cross_layers: names or globs of the layers whose text attention is used.
        reference: layer that gives the reference affinity; needed by methods that compare with it.
        reference_channels: `all` channels of that feature (the paper), or the `first` alone (the released code, for parity).
        feature_size: cells along the model's square of the grid on which maps are added up; other shapes in proportion.
        renormalize: make resized self-attention rows sum to 1, so that low-resolution layers do not weigh more.
        rows: estimate layer weights from this many query rows of the reference, one at random in each of as many cells of the
            picture; `all` is exact; `auto` is exact up to 1024 rows (32 x 32) and takes 512 of more.
    """

    heads: str
    layers: str
    cross_layers: tuple[str, ...]
    reference: str | None = None
    reference_channels: Literal["all", "first"] = "all"
    feature_size: PositiveInt = 64
    renormalize: bool = False
    rows: PositiveInt | Literal["all", "auto"] = "auto"

    @field_validator("rows", mode="before")
    @classmethod
    def _null_is_all(cls, rows: object) -> object:
        return "all" if rows is None else rows  # configurations of earlier runs say null

    @field_validator("heads")
    @classmethod
    def _known_heads(cls, name: str) -> str:
        head_methods.METHODS.find(name)
        return name

    @field_validator("layers")
    @classmethod
    def _known_layers(cls, name: str) -> str:
        layer_methods.find_method(name)
        return name

    def __post_init__(self) -> None:
        if not self.cross_layers:
            raise ValueError(f"layers={self.layers} needs at least one cross-attention layer; cross_layers is empty")
        if self.weighs_layers and self.reference is None:
            raise ValueError(f"layers={self.layers} compares with a reference layer; set aggregation.reference")

    @property
    def weighs_layers(self) -> bool:
        """Whether self-attention and a reference feature have to be observed at all."""
        return self.layers not in layer_methods.UNIFORM
