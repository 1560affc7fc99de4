"""Label maps as pictures whose pixel values are class ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from goca.disk import replacing

_BYTE = 255  # the highest id that a palette PNG holds


def write_labels(path: Path, label: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> None:
    """Write a label map (H, W) as a palette PNG whose values are class ids; ids beyond a byte make it a 16-bit grey one.

    Args:
        path: the file; its folder is made.
        label: class ids.
        colours: RGB by class id.
    """
    wide = bool(label.size) and int(label.max()) > _BYTE
    picture = Image.fromarray(label.astype(np.uint16 if wide else np.uint8))
    if not wide:
        picture = Image.fromarray(label.astype(np.uint8), mode="P")
        picture.putpalette([channel for colour in colours[: _BYTE + 1] for channel in colour])
    with replacing(path) as part:
        picture.save(part, format="PNG")
