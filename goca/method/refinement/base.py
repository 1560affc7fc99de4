"""What refinements have in common: what they need, what they are given, and how they compose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as config_dataclass
from torch import Tensor

from goca.errors import ConfigError
from goca.method.calibration import ClassMaps

CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


@dataclass(frozen=True)
class Needs:
    """What has to be observed or handed over: layers by name or glob, and the image."""

    self_attention: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    image: bool = False
    feature_kind: str | None = None  # of the features, where it is not the model's: `query`, `output` or `projected`

    def __or__(self, other: Needs) -> Needs:
        """Both together. ConfigError: features of two kinds, of which one forward keeps one."""
        if self.features and other.features and self.feature_kind != other.feature_kind:
            kinds = " and ".join(kind or "the model's own" for kind in (self.feature_kind, other.feature_kind))
            raise ConfigError(f"refinement: two steps want features of different kinds ({kinds}); use one of them")
        return Needs(
            tuple(dict.fromkeys((*self.self_attention, *other.self_attention))),
            tuple(dict.fromkeys((*self.features, *other.features))),
            self.image or other.image,
            other.feature_kind or self.feature_kind,
        )


class SelfAttention(Protocol):
    """Head-mean self-attention of one image in one layer, recomputed for the rows that are asked for."""

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w); pixel (y, x) is row and key y * w + x."""
        ...

    def rows(self, index: Tensor) -> Tensor:
        """(len(index), h * w) float32 attention of those query pixels, in a tensor that the caller may change."""
        ...

    @property
    def heads(self) -> int: ...

    def head_rows(self, index: Tensor, heads: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Rows of each head, or of those listed, one head at a time, each as `rows` gives their mean."""
        ...


@runtime_checkable
class KernelSelfAttention(SelfAttention, Protocol):
    """Self-attention that can also be multiplied with values by the attention kernel, without its rows."""

    @property
    def through_kernel(self) -> bool:
        """Whether `apply` is the faster way on this device."""
        ...

    def apply(self, values: Tensor, rows: Tensor | None = None) -> Tensor:
        """Rows times values (h * w, C), all or those of some query pixels: (r, C) float32."""
        ...


@dataclass(frozen=True)
class RefinementContext:
    """What one image offers to refinements."""

    size: tuple[int, int]  # (h, w) grid on which affinities act
    self_attention: Mapping[str, SelfAttention] = field(default_factory=dict)  # by layer name
    features: Mapping[str, Tensor] = field(default_factory=dict)  # layer name -> (C, h, w)
    image: Tensor | None = None  # (3, H, W) in [-1, 1]
    max_bytes: int = 2**28  # of temporary tensors


@runtime_checkable
class Refinement(Protocol):
    """One step from class maps to better class maps, perhaps of another size.

    A class attribute `scale` says it of steps whose results do not lie between 0 and 1 by themselves: "kept" where they lie as
    the maps that came in, "other" where thresholds of 0 ... 1 mean nothing to them.
    """

    @property
    def needs(self) -> Needs: ...

    def refine(self, maps: ClassMaps, context: RefinementContext) -> ClassMaps: ...


@config_dataclass(frozen=True, config=CONFIG)
class Refinements:
    """Refinements one after the other; none at all leaves the maps as they are."""

    steps: tuple[Refinement, ...] = ()

    @property
    def needs(self) -> Needs:
        """What any of the steps needs."""
        needs = Needs()
        for step in self.steps:
            needs |= step.needs
        return needs

    @property
    def without_names(self) -> str | None:
        """The step that leaves segments without names, if there is one."""
        return next((type(step).__name__ for step in self.steps if getattr(step, "names", None) == "none"), None)

    def bounded(self, before: bool) -> bool:
        """Whether the result lies between 0 and 1, given whether the maps that go in do."""
        for step in self.steps:
            scale = getattr(step, "scale", "unit")
            before = scale == "unit" or (scale == "kept" and before)
        return before

    def refine(self, maps: ClassMaps, context: RefinementContext) -> ClassMaps:
        """Apply every step in order."""
        for step in self.steps:
            maps = step.refine(maps, context)
        return maps
