"""Views: the same picture seen several times, with other noise, shifted or mirrored; the refined maps of all are averaged.

One noisy forward shows a picture through one draw of noise and one grid of tokens. A shift by part of a token moves that grid,
so that averaged maps are finer than any one view's; new noise averages out what a single draw hides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.data.base import Sample
from goca.method.calibration import ClassMaps
from goca.ops import resize

_Shift = Annotated[float, Field(ge=-0.25, le=0.25)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class View:
    """One way to see a picture.

    Args:
        shift: (down, right), parts of height and width by which the picture's content moves up and left; borders are reflected.
        mirror: left and right swapped.
    """

    shift: tuple[_Shift, _Shift] = (0.0, 0.0)
    mirror: bool = False

    def pixels(self, picture: Tensor) -> Tensor:
        """The picture (3, H, W) as this view shows it."""
        down, right = self._steps(picture)
        if (down, right) != (0, 0):
            below, beside = abs(down), abs(right)
            padded = F.pad(picture[None], (beside, beside, below, below), mode="reflect")[0]
            picture = padded[:, below + down :, beside + right :][:, : picture.shape[1], : picture.shape[2]]
        return picture.flip(-1) if self.mirror else picture

    def restore(self, maps: Tensor, picture: Tensor) -> Tensor:
        """Maps (C, h, w) of this view in the place of the original picture (3, H, W); what no view shows repeats its border."""
        maps = maps.flip(-1) if self.mirror else maps
        for axis, steps in zip((-2, -1), self._steps(picture), strict=True):
            maps = _moved(maps, steps * maps.shape[axis] / picture.shape[axis], axis)
        return maps

    def _steps(self, picture: Tensor) -> tuple[int, int]:
        """The shift in whole pixels."""
        down, right = (round(part * side) for part, side in zip(self.shift, picture.shape[-2:], strict=True))
        return down, right


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Views:
    """The views of every picture; each but the first has noise of its own, so that several plain views average over noises."""

    views: Annotated[tuple[View, ...], Field(min_length=1)] = (View(),)

    def __len__(self) -> int:
        return len(self.views)

    def of(self, sample: Sample) -> list[Sample]:
        """The sample as each view shows it; the image id chooses the noise."""
        if sample.pixels is None:
            return [sample] * len(self)
        return [
            dataclasses.replace(
                sample, image_id=f"{sample.image_id}/{number}" if number else sample.image_id, pixels=view.pixels(sample.pixels)
            )
            for number, view in enumerate(self.views)
        ]

    def merge(self, parts: Sequence[ClassMaps], sample: Sample) -> ClassMaps:
        """The mean of the views' class maps, each restored to the picture's place."""
        if sample.pixels is None or self == Views():
            (maps,) = parts
            return maps
        first, size = parts[0], max(part.size for part in parts)
        stacks = [view.restore(resize(part.stack(), size), sample.pixels) for view, part in zip(self.views, parts, strict=True)]
        return first.with_stack(torch.stack(stacks).mean(0), *(warning for part in parts[1:] for warning in part.warnings))


def _moved(maps: Tensor, steps: float, axis: int) -> Tensor:
    """Maps moved by `steps` cells towards higher indices along an axis, linearly between cells, the border repeated."""
    if not steps:
        return maps
    last = maps.shape[axis] - 1
    source = (torch.arange(last + 1, device=maps.device) - steps).clamp(0, last)
    low = source.floor().long()
    weight = (source - low).to(maps.dtype)
    weight = weight[:, None] if axis == -2 else weight
    return torch.lerp(maps.index_select(axis, low), maps.index_select(axis, (low + 1).clamp(max=last)), weight)
