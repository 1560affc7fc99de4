"""Reading images and masks from files that may be missing, broken, huge or not what they claim to be."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from goca.errors import DataError

MAX_PIXELS = 100_000_000  # Cityscapes has 2 M; a picture far above that is a mistake or an attack on memory
# What PIL raises on broken files.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, where the name comes from a list or a manifest and must not lead out of the folder.

    The test is on the words of the path, not on the disk, so that data may still lie behind symbolic links.

    Raises:
        DataError: an absolute name, or one that climbs above the folder.
    """
    first, *_ = parts = os.path.normpath(name.replace("\\", "/")).split("/")
    if not name or "\0" in name or first in ("", "..") or ":" in first:
        raise DataError(f"{name!r} leads out of its folder {folder}; only names inside it are read")
    return folder.joinpath(*parts)


def open_picture(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A fully decoded picture.

    Raises:
        DataError: the file is missing, not a picture, truncated, or has more than `max_pixels` pixels.
    """
    if not path.is_file():
        raise DataError(f"missing file: {path}")
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > max_pixels:
                size = f"{picture.width} x {picture.height}"
                raise DataError(f"{path} has {size} pixels, more than the limit of {max_pixels:,} (max_pixels)")
            picture.load()
            return picture
    except _BROKEN as error:
        raise DataError(f"cannot read the image {path}: {error or type(error).__name__}") from error


def read_rgb(path: Path, max_pixels: int = MAX_PIXELS, stored_size: tuple[int, int] | None = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB, turned as its EXIF tag says.

    Grey, 16-bit, palette, CMYK and transparent pictures become RGB. `stored_size` is the (H, W) of the picture's mask: masks
    of some data sets follow the stored pixels and ignore the tag, and where only that fits the picture is not turned.
    """
    picture = open_picture(path, max_pixels)
    try:
        upright = ImageOps.exif_transpose(picture)
        if upright.size != picture.size and stored_size == (picture.height, picture.width):
            upright = picture
        if upright.mode.startswith("I"):  # PIL would clip 16 bits to 8 rather than scale them
            return np.repeat((np.asarray(upright).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        return np.array(upright.convert("RGB"))
    except _BROKEN as error:
        raise DataError(f"cannot read the image {path}: {error or type(error).__name__}") from error


def read_indices(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """(H, W) integer values of a mask: palette indices as they are, grey levels, or 16-bit values.

    Raises:
        DataError: as `open_picture`, or the mask is a colour picture.
    """
    picture = open_picture(path, max_pixels)
    if picture.mode not in _INDEX_MODES:
        raise DataError(
            f"the mask {path} is a colour picture (mode {picture.mode}); class ids must be palette indices or grey levels"
        )
    return np.array(picture).astype(np.int32)


def read_panoptic(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """(H, W) segment ids of a COCO panoptic PNG: R + 256 G + 65536 B."""
    picture = open_picture(path, max_pixels)
    if picture.mode not in ("RGB", "RGBA"):
        raise DataError(f"the panoptic mask {path} must be an RGB picture, its mode is {picture.mode}")
    channels = np.array(picture)[..., :3].astype(np.int64)
    return channels @ np.array([1, 256, 65536])
