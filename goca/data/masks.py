"""Reading masks: the class id of every pixel, however an editor or optimiser has stored it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from goca.data.pictures import MAX_PIXELS, name_of, open_picture
from goca.errors import DataError

_LOSSY = ("JPEG", "MPO")
_GREY_MODES = ("1", "L", "I", "I;16", "I;16B", "I;16L", "I;16N")


@cache
def voc_palette() -> tuple[tuple[int, int, int], ...]:
    """The 256 colours of Pascal VOC, by index; many annotation tools write them.

    The bits of an index go in turn to red, green and blue, from the highest bit of each down (VOC devkit, `VOClabelcolormap`).

    >>> voc_palette()[15], voc_palette()[255]
    ((192, 128, 128), (224, 224, 192))
    """
    index = np.arange(256)
    channels = [sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]
    return tuple(tuple(colour) for colour in np.stack(channels, 1).tolist())  # type: ignore[misc]


def read_indices(
    path: Path,
    max_pixels: int = MAX_PIXELS,
    palettes: Sequence[Sequence[tuple[int, int, int]]] = (),
    known: np.ndarray | None = None,
    by_index: bool = False,
) -> np.ndarray:
    """(H, W) int32 values of a mask: grey levels, 16-bit values, or what the colours of its palette stand for.

    A palette's order says nothing: programs that shrink PNGs without loss reorder it, and make palettes of grey masks. So
    colours are looked up in `palettes`, and grey ones stand for their level.

    Args:
        palettes: official palettes, colours by value.
        known: (R,) bool, which values exist; decides where colours could be read in two ways.
        by_index: take the indices of a palette as they are.

    Raises:
        DataError: as `open_picture`; the mask is a colour picture or was compressed with loss; or its palette is neither.
    """
    picture, name = open_picture(path, max_pixels), name_of(path)
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        raise DataError(f"the mask {name} has an EXIF tag that turns it; save it without, upright or as its picture is stored")
    if picture.format in _LOSSY or "jpeg" in str(picture.info.get("compression")):
        raise DataError(f"the mask {name} is a JPEG picture, whose compression changes class ids; save masks as PNG")
    if picture.mode == "P":
        return _of_palette(picture, name, palettes, known, by_index)
    if picture.mode == "LA" and picture.getextrema()[1] == (255, 255):  # an editor has added opacity that says nothing
        picture = picture.getchannel("L")
    if picture.mode not in _GREY_MODES:
        raise DataError(
            f"the mask {name} is a colour picture (mode {picture.mode}); class ids must be palette indices or grey levels"
        )
    values = np.array(picture).astype(np.int32)
    bits = _grey_bits(path)
    if bits in (2, 4) and known is not None and values.any():  # PIL takes them for grey levels
        ids = values // (255 // (2**bits - 1))
        if ids.max() < len(known) and known[ids].all():  # levels that are no ids are not refused under every protocol
            raise DataError(
                f"the mask {name} stores {bits} bits a pixel, which may be class ids ({ids.max()} at most) or grey levels "
                f"({values.max()}); save class ids with 8 bits"
            )
    if picture.mode == "1" and known is not None and known[2:255].any() and values.any():
        raise DataError(
            f"the mask {name} stores one bit a pixel: class 1, or void (255) that an optimiser has made smaller; save class "
            "ids with 8 bits"
        )
    return values


def _grey_bits(path: Path) -> int | None:
    """Bits a pixel of a grey PNG, from its header; None for other files."""
    with path.open("rb") as file:
        header = file.read(26)
    return header[24] if header.startswith(b"\x89PNG\r\n\x1a\n") and header[25:] == b"\0" else None


def read_panoptic(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """(H, W) segment ids of a COCO panoptic PNG: R + 256 G + 65536 B."""
    picture = open_picture(path, max_pixels)
    if picture.format in _LOSSY:
        raise DataError(f"the panoptic mask {name_of(path)} is a JPEG picture, whose compression changes segment ids")
    if picture.mode == "P":  # an optimiser's doing: few segments, few colours
        picture = picture.convert("RGB")
    if picture.mode not in ("RGB", "RGBA"):
        raise DataError(f"the panoptic mask {name_of(path)} must be an RGB picture, its mode is {picture.mode}")
    channels = np.array(picture)[..., :3].astype(np.int64)
    return channels @ np.array([1, 256, 65536])


def _of_palette(
    picture: Image.Image,
    name: str,
    palettes: Sequence[Sequence[tuple[int, int, int]]],
    known: np.ndarray | None,
    by_index: bool,
) -> np.ndarray:
    indices = np.array(picture).astype(np.int32)
    if by_index:
        return indices
    used = np.unique(indices)
    stored = np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    if used[-1] >= len(stored):
        raise DataError(f"the mask {name} uses the index {used[-1]} of a palette with {len(stored)} colours; it is damaged")
    colours = [(int(red), int(green), int(blue)) for red, green, blue in stored[used]]
    readings = [_looked_up(used, colours, palette) for palette in palettes]
    if all(red == green == blue for red, green, blue in colours):
        readings.append([red for red, _, _ in colours])
    found = [tuple(reading) for reading in readings if reading is not None]
    valid = [reading for reading in found if known is None or all(v < len(known) and known[v] for v in reading)]
    choices = dict.fromkeys(valid or found)
    if len(choices) > 1 and tuple(used.tolist()) in choices:
        choices = {tuple(used.tolist()): None}  # nobody has reordered it
    if len(choices) != 1:
        strange = next((colour for colour in colours if not any(colour in palette for palette in palettes)), colours[0])
        what = "can be read in two ways" if choices else f"is neither grey nor official (it has the colour {strange})"
        raise DataError(
            f"the palette of the mask {name} {what}, and its order may be that of a PNG optimiser: save class ids as grey "
            "levels, or set dataset.palette=index to take indices as they are"
        )
    table = np.zeros(int(used[-1]) + 1, np.int32)
    table[used] = next(iter(choices))
    return table[indices]


def _looked_up(
    used: np.ndarray, colours: Sequence[tuple[int, int, int]], palette: Sequence[tuple[int, int, int]]
) -> list[int] | None:
    """Values of the colours in an official palette; None where it lacks one."""
    values: dict[tuple[int, int, int], int] = {}
    for value, colour in enumerate(palette):
        values.setdefault(colour, value)
    if any(colour not in values for colour in colours):
        return None
    pairs = zip(used.tolist(), colours, strict=True)
    return [index if index < len(palette) and palette[index] == colour else values[colour] for index, colour in pairs]
