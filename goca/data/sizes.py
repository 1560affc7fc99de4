"""How large a picture is shown to the model: squeezed into a square, with its aspect ratio kept, or in windows.

Backbones take sides that are multiples of a number of pixels and are best near the size they were trained at; pictures come in
any shape. A rule brings one to the other. On square pictures all rules do the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass as config_dataclass
from torch import Tensor

from goca.errors import ConfigError
from goca.ops import Grid

_CONFIG = ConfigDict(extra="forbid")
# Times the length: the longer side of a strip is this long, and the shorter one gets what is left. Windows keep their size.
_LONGEST, _LONGEST_IN_WINDOWS = 4, 32


class Limits(NamedTuple):
    """What a backbone takes: `side` is the square it is used at, `longest` what its table of positions ends at; pixels."""

    side: int
    multiple: int
    longest: int | None = None


@dataclass(frozen=True)
class Window:
    """A part of a picture, in pixels from its upper left corner."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, picture: Tensor) -> Tensor:
        """The window's part of a picture (..., H, W)."""
        return picture[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def cells(self, picture: Grid, grid: Grid) -> tuple[slice, slice]:
        """The rows and columns of a grid over the whole picture that the window touches.

        >>> Window(0, 32, 64, 64).cells((64, 128), (8, 16))
        (slice(0, 8, None), slice(4, 12, None))
        """
        return (
            _touched(self.top, self.height, picture[0], grid[0]),
            _touched(self.left, self.width, picture[1], grid[1]),
        )

    def grid(self, own: Grid, picture: Grid) -> Grid | None:
        """The grid of the whole picture that continues the window's own; None where no whole grid does.

        >>> Window(0, 32, 64, 64).grid((8, 8), (64, 128))
        (8, 16)
        """
        rows, columns = own[0] * picture[0], own[1] * picture[1]
        starts = own[0] * self.top % self.height or own[1] * self.left % self.width
        return None if rows % self.height or columns % self.width or starts else (rows // self.height, columns // self.width)


@config_dataclass(frozen=True, config=_CONFIG)
class Square:
    """Every picture becomes the model's square, whatever its shape: the paper's way, and the default."""

    def check(self, limits: Limits) -> None:
        """Nothing can be wrong."""

    def fit(self, shape: Grid, limits: Limits) -> Grid:
        """Height and width in pixels that a picture of this (height, width) is resized to."""
        return limits.side, limits.side

    def windows(self, size: Grid, limits: Limits) -> tuple[Window, ...]:
        """The parts of the resized picture that the model sees one by one."""
        return (Window(0, 0, *size),)


@config_dataclass(frozen=True, config=_CONFIG)
class KeepAspect(Square):
    """One picture of its own shape, at the nearest multiples that the model takes.

    Args:
        side: which side has the length; `area` gives the picture as many pixels as a square of that length has.
        length: pixels; null is the model's size.
        longest: pixels of the longer side at most; null is four times the length. Where the model's table of positions ends
            sooner, that counts.
    """

    side: Literal["shorter", "longer", "area"] = "shorter"
    length: PositiveInt | None = None
    longest: PositiveInt | None = None

    def check(self, limits: Limits) -> None:
        """Raises ConfigError for lengths that the model cannot take."""
        _check_multiple("length", self.length, limits)

    def fit(self, shape: Grid, limits: Limits) -> Grid:
        """As `Square.fit`.

        >>> KeepAspect().fit((375, 500), Limits(64, 8)), KeepAspect(side="longer").fit((375, 500), Limits(64, 8))
        ((64, 88), (48, 64))
        >>> KeepAspect().fit((20, 500), Limits(64, 8)), KeepAspect().fit((20, 500), Limits(64, 8, longest=128))
        ((8, 256), (8, 128))
        """
        length = self.length or limits.side
        return _kept(shape, self.side, length, min(self.longest or _LONGEST * length, limits.longest or 2**30), limits.multiple)


@config_dataclass(frozen=True, config=_CONFIG)
class Windows(Square):
    """The picture with its aspect ratio kept, seen in overlapping windows whose maps are averaged by how many cover a place.

    Args:
        length: of the picture's shorter side, pixels; null is the model's size.
        crop: side of a window; null is the model's size. A side of the picture that is shorter is seen whole.
        stride: from one window to the next, at most; null is half the crop. The last window ends at the picture's border.
        longest: of the picture's longer side at most; null is 32 times the length.
        merge: `token_maps` joins what the windows' attention showed to one map over the picture, which is then calibrated and
            refined as any; `class_maps` calibrates and refines every window by itself.
    """

    length: PositiveInt | None = None
    crop: PositiveInt | None = None
    stride: PositiveInt | None = None
    longest: PositiveInt | None = None
    merge: Literal["token_maps", "class_maps"] = "token_maps"

    def check(self, limits: Limits) -> None:
        """Raises ConfigError for lengths that the model cannot take."""
        for name in ("length", "crop", "stride"):
            _check_multiple(name, getattr(self, name), limits)
        crop, stride = self._crop_and_stride(limits)
        if stride > crop:
            raise ConfigError(f"sizing.stride: {stride} px leave gaps between windows of {crop} px")

    def fit(self, shape: Grid, limits: Limits) -> Grid:
        """As `Square.fit`; a table of positions limits the windows alone."""
        length = self.length or limits.side
        return _kept(shape, "shorter", length, self.longest or _LONGEST_IN_WINDOWS * length, limits.multiple)

    def windows(self, size: Grid, limits: Limits) -> tuple[Window, ...]:
        """As `Square.windows`, row by row.

        >>> [(window.left, window.width) for window in Windows().windows((64, 144), Limits(64, 8))]
        [(0, 64), (32, 64), (64, 64), (80, 64)]
        """
        crop, stride = self._crop_and_stride(limits)
        height, width = min(crop, size[0]), min(crop, size[1])
        return tuple(
            Window(top, left, height, width)
            for top in _starts(size[0], height, stride)
            for left in _starts(size[1], width, stride)
        )

    def _crop_and_stride(self, limits: Limits) -> tuple[int, int]:
        crop = self.crop or limits.side
        return crop, self.stride or max(1, crop // 2 // limits.multiple) * limits.multiple


Sizing = Square | KeepAspect | Windows


@dataclass(frozen=True)
class Fit:
    """A rule with the limits of a backbone: the shape of a picture -> the size it is resized to."""

    rule: Sizing
    limits: Limits

    def __call__(self, shape: Grid) -> Grid:
        return self.rule.fit(shape, self.limits)


def to_pixels(image: np.ndarray, size: int | Grid) -> Tensor:
    """(H, W, 3) uint8 -> (3, height, width) float in [-1, 1], resized bicubically; a number is the side of a square."""
    height, width = size if isinstance(size, tuple) else (size, size)
    if image.shape[:2] != (height, width):
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 127.5 - 1


def _check_multiple(name: str, length: int | None, limits: Limits) -> None:
    unit = limits.multiple
    if length is not None and length % unit:
        near = max(1, round(length / unit)) * unit
        raise ConfigError(f"sizing.{name}: this model takes multiples of {unit} px, got {length}; {near} is nearest")


def _kept(shape: Grid, side: str, length: int, longest: int, multiple: int) -> Grid:
    """The multiples nearest to the scaled shape, at least one and at most as many as `longest` holds."""
    height, width = shape
    measured = {"shorter": min(shape), "longer": max(shape), "area": (height * width) ** 0.5}[side]
    # As a fraction of two whole numbers where possible, so that a square picture gives exactly `length` twice.
    scaled = partial(_scaled, length=length, measured=measured)
    if scaled(max(shape)) > longest:
        scaled = partial(_scaled, length=longest, measured=max(shape))
    most = max(1, longest // multiple)
    rows, columns = (min(most, max(1, round(scaled(pixels) / multiple))) for pixels in shape)
    return rows * multiple, columns * multiple


def _scaled(pixels: int, length: int, measured: float) -> float:
    return pixels * length / measured


def _starts(size: int, crop: int, stride: int) -> list[int]:
    """Where windows begin along an axis; the last one ends at the border."""
    return [*range(0, size - crop, stride), size - crop]


def _touched(start: int, length: int, picture: int, cells: int) -> slice:
    return slice(start * cells // picture, -(-(start + length) * cells // picture))
