"""Reading pictures: one set of rules for every way in, be it a path, bytes, a PIL image or an array.

Pictures may be grey, 16-bit, float, palette, CMYK, transparent, animated, or turned by an EXIF tag; all become 8-bit RGB. Where
that takes a choice, a note says what was chosen; where there is no right answer, one message says what would be right.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image

from goca.data.files import existing, printable
from goca.errors import ConfigError, DataError

MAX_PIXELS = 100_000_000  # Cityscapes has 2 M; a picture far above that is a mistake or an attack on memory
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF")
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".avif")
# What PIL raises on broken files.
BROKEN = (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)

Orientation = Literal["auto", "upright", "stored"]
ImageSource = str | os.PathLike[str] | bytes | bytearray | BinaryIO | Image.Image | np.ndarray

_TURNS = {  # EXIF orientation -> how the stored pixels become upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACK = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90}
BOTH_WAYS = "an EXIF tag turns the picture, and the mask fits both ways: read as stored (dataset.orientation=upright turns it)"
_DARK = 4096  # 16-bit values that all lie below come from a 12-bit camera, or the picture is nearly black


@dataclass(frozen=True)
class Picture:
    """(H, W, 3) uint8 RGB pixels, and what was chosen in reading them."""

    pixels: np.ndarray
    notes: tuple[str, ...] = ()


def read_picture(
    source: ImageSource,
    max_pixels: int = MAX_PIXELS,
    mask_size: tuple[int, int] | None = None,
    orientation: Orientation = "auto",
) -> Picture:
    """The picture as 8-bit RGB.

    Grey is repeated, 16 bits keep the upper 8, floats from 0 to 1 are scaled, of an animation the first frame is taken, and
    transparent pixels keep the colour that is stored for them, as in `PIL.Image.convert("RGB")`.

    Args:
        source: a path, the bytes of a file or an open one, a PIL image, or an (H, W, 3) uint8 array.
        max_pixels: more are refused before they are decoded.
        mask_size: (H, W) of the picture's mask, where there is one.
        orientation: `upright` turns the picture as its EXIF tag says, `stored` does not. `auto` turns pictures without a mask.
            With one it does what the mask fits; where that is both, pixels stay as stored and a note says so.

    Raises:
        DataError: the file is missing, no picture, truncated, too large, or its values have no agreed meaning as a picture.
        ConfigError: the source is none of the kinds above.
    """
    if isinstance(source, np.ndarray):
        return Picture(_checked(source))
    decoded = _decode(source, max_pixels)
    name = name_of(source)
    try:
        image, notes = _oriented(decoded, mask_size, orientation)
        pixels, more = _to_rgb(image, name)
    except BROKEN as error:
        raise _unreadable(name, error) from error
    if decoded.frames:
        notes += ("of several frames the first one is read",)
    return Picture(pixels, notes + more)


def read_rgb(source: ImageSource, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """(H, W, 3) uint8: the pixels of `read_picture`."""
    return read_picture(source, max_pixels).pixels


def open_picture(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A decoded PIL image, neither turned nor converted. Raises: as `read_picture`."""
    return _decode(source, max_pixels).image


@dataclass(frozen=True)
class _Decoded:
    image: Image.Image
    tag: int  # EXIF orientation
    turned: bool  # PIL has turned it already, as it does with TIFF files
    frames: bool  # more than one, of a kind that people mean


def _decode(source: Any, max_pixels: int) -> _Decoded:
    name = name_of(source)
    try:
        with _opened(source) as picture:
            if picture.width * picture.height > max_pixels:
                size = f"{picture.width} x {picture.height}"
                raise DataError(f"{name} has {size} pixels, more than the limit of {max_pixels:,} (max_pixels)")
            if not picture.width * picture.height:
                raise DataError(f"{name} is empty: it has no pixels")
            tag = _orientation(picture)
            # Further frames of an MPO are the camera's own business; an image that is at hand shows the frame meant.
            several = not isinstance(source, Image.Image) and picture.format != "MPO" and getattr(picture, "is_animated", False)
            picture.load()
            return _Decoded(picture, tag, _orientation(picture) != tag, several)
    except BROKEN as error:
        raise _unreadable(name, error) from error


def name_of(source: Any) -> str:
    """How messages call a source: its path, or `the picture`."""
    return printable(source) if isinstance(source, (str, os.PathLike)) else "the picture"


def _opened(source: Any) -> AbstractContextManager[Image.Image]:
    if isinstance(source, Image.Image):
        return nullcontext(source)  # whoever opened it closes it
    if isinstance(source, (bytes, bytearray)):
        return Image.open(io.BytesIO(source), formats=FORMATS)
    if hasattr(source, "read") and hasattr(source, "seek"):
        return Image.open(source, formats=FORMATS)
    if not isinstance(source, (str, os.PathLike)):
        raise ConfigError(f"{_kinds()}; got {type(source).__name__}")
    name = os.fspath(source)
    if re.match(r"[a-z]+://", name):
        raise DataError(f"{name} is an address; pictures are read from files: download it first")
    path = existing(Path(name))
    if not path.is_file():
        raise DataError(f"missing file: {printable(source)}")
    return Image.open(path, formats=FORMATS)


def _unreadable(name: str, error: BaseException) -> DataError:
    if isinstance(error, Image.UnidentifiedImageError):
        return DataError(f"cannot read the image {name}: it is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture")
    return DataError(f"cannot read the image {name}: {error or type(error).__name__}")


def _kinds() -> str:
    return "an image is a path, the bytes of a file, a PIL image or an (H, W, 3) uint8 array"


def _checked(array: np.ndarray) -> np.ndarray:
    """An array that is what it should be; grey ones and floats could be meant in several ways and are refused."""
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8 and array.size:
        return array
    hint = ""
    if not array.size:
        hint = "; it is empty"
    elif array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        hint = "; array.transpose(1, 2, 0) puts the channels last"
    elif array.dtype == np.uint8:
        hint = "; PIL.Image.fromarray(array) is read whatever its channels"
    raise ConfigError(f"an image array must be (H, W, 3) uint8, got {array.shape} {array.dtype}{hint}")


# ------------------------------------------------------------------------------------------------------------ orientation
def _orientation(picture: Image.Image) -> int:
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever a damaged tag makes PIL raise; the pixels may be sound
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _oriented(
    decoded: _Decoded, mask_size: tuple[int, int] | None, orientation: Orientation
) -> tuple[Image.Image, tuple[str, ...]]:
    """The picture upright or as stored, and a note where both would have been possible."""
    image = decoded.image
    if decoded.tag not in _TURNS:
        return image, ()
    turn = _TURNS[decoded.tag]
    upright = image if decoded.turned else image.transpose(turn)
    stored = image.transpose(_BACK.get(turn, turn)) if decoded.turned else image
    if orientation != "auto" or mask_size is None:
        return (stored if orientation == "stored" else upright), ()
    fits = [one for one in (upright, stored) if (one.height, one.width) == mask_size]
    return (fits or [upright])[-1], (BOTH_WAYS,) if len(fits) == 2 else ()


# ----------------------------------------------------------------------------------------------------------------- colour
def _to_rgb(picture: Image.Image, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """(H, W, 3) uint8 and notes, of any mode."""
    mode = picture.mode
    if mode == "F":
        return _repeated(_from_floats(np.asarray(picture), name)), ("floats from 0 to 1 were scaled to 0 ... 255",)
    if mode == "I":
        raise DataError(f"{name} holds 32-bit integers, which have no agreed range as a picture; save it with 8 or 16 bits")
    if mode.startswith("I;16"):  # PIL would clip 16 bits to 8 rather than scale them
        deep = np.asarray(picture)
        dark = 0 < int(deep.max()) < _DARK
        note = (f"16-bit values that end below {_DARK}: nearly black, unless they are scaled to 65535",) if dark else ()
        return _repeated((deep >> 8).astype(np.uint8)), note
    if mode in ("La", "RGBa"):  # colours multiplied by their opacity
        picture = picture.convert({"La": "LA", "RGBa": "RGBA"}[mode])
    if not picture.has_transparency_data:
        return np.array(picture.convert("RGB")), ()
    clear = picture.convert("RGBA")
    see_through = clear.getchannel("A").getextrema()[0] < 255  # type: ignore[operator]
    note = ("transparent pixels are read in the colour that is stored for them",) if see_through else ()
    return np.array(clear.convert("RGB")), note


def _repeated(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def _from_floats(values: np.ndarray, name: str) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # NaN included
        raise DataError(
            f"{name} holds floats from {low:g} to {high:g}; only 0 ... 1 has an agreed meaning: scale it, or save 8 or 16 bits"
        )
    return (values.astype(np.float64) * 255.0).round().astype(np.uint8)
