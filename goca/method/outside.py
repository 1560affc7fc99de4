"""Class maps from outside, such as another network's: only refinement and decision run on them."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load_file

from goca.errors import DataError
from goca.method.calibration import ClassMaps


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MapFiles:
    """One safetensors file per image, `<image id>.safetensors`, with `ids` (C,) and `scores` (C, h, w), both 1 or larger.

    Optional: `supporting` (h, w), the background's. Stands in the place of a calibration.

    Args:
        path: the folder.
    """

    path: Path

    def of_image(self, image_id: str, classes: int | None = None) -> ClassMaps:
        """The maps of an image.

        Args:
            classes: how many the class table has, background included; None where that is not known.

        Raises:
            DataError: no file, or one that does not hold class maps.
        """
        file = self.path / f"{image_id}.safetensors"
        try:
            found = load_file(file)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{file}: no class maps of this image can be read ({error})") from error
        ids, scores = found.get("ids"), found.get("scores")
        if ids is None or scores is None or ids.ndim != 1 or scores.ndim != 3 or len(ids) != len(scores):
            shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
            raise DataError(f"{file} needs ids (C,) and scores (C, h, w), and holds {shapes}")
        scores = scores.float()
        supporting = found.get("supporting", torch.zeros(scores.shape[-2:])).float()
        if supporting.shape != scores.shape[-2:]:
            raise DataError(f"{file}: supporting is {tuple(supporting.shape)}, and the scores are {tuple(scores.shape[-2:])}")
        if not (scores.isfinite().all() and supporting.isfinite().all()):
            raise DataError(f"{file}: scores that are not finite")
        last = None if classes is None else classes - 1
        whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
        if not whole or any(i < 1 or (last is not None and i > last) for i in ids.tolist()) or len(ids.unique()) != len(ids):
            known = "from 1 on" if last is None else f"from 1 to {last}"
            raise DataError(f"{file}: ids are whole class numbers {known}, each once; got {ids.tolist()}")
        return ClassMaps(tuple(ids.tolist()), scores, supporting, scores)
