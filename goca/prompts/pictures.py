"""Which picture an answer was given for: files of one folder are named as those of another, and answers go by the name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from goca.data.base import Sample, SegmentationDataset
from goca.errors import ConfigError, DataError
from goca.prompts.files import image_key, read_jsonl

FIELD = "picture_hash"  # of a record; those of earlier versions and of other programs lack it, and are taken as they are


def picture_hash(image: np.ndarray) -> str:
    """Twelve digits of the shape and the pixels of an (H, W, 3) uint8 image.

    >>> picture_hash(np.zeros((2, 3, 3), np.uint8)) == picture_hash(np.zeros((3, 2, 3), np.uint8))
    False
    """
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()[:12]


def read_pictures(path: Path) -> dict[str, str]:
    """Image key -> hash of the picture that its record was written for, of the records that say so; only JSONL has such.

    Raises:
        DataError: for a missing file, or a line that is no JSON.
    """
    if path.suffix != ".jsonl":
        return {}
    rows = [row for _, row in read_jsonl(path) if isinstance(row, dict)]
    noted = [(row.get("image_id"), row.get(FIELD)) for row in rows]
    return {image_key(name): said for name, said in noted if isinstance(name, str) and isinstance(said, str)}


def check_picture(path: Path | str, pictures: Mapping[str, str], sample: Sample) -> None:
    """Compare a sample with the picture that the answer for its name was given for, where that is known.

    Args:
        path: the file of the answers, for the message.
        pictures: image key -> `picture_hash`.

    Raises:
        ConfigError: it is another picture. Not `DataError`, which costs one image alone: the file is that of other pictures.
    """
    noted = pictures.get(image_key(sample.image_id))
    if noted is not None and noted != picture_hash(sample.image):
        raise ConfigError(
            f"{path}: what it holds for image {sample.image_id!r} was said of another picture of this name; give these "
            f"pictures a file of their own (prompts.path=...), or take {FIELD!r} out of its lines if its words suit them too"
        )


def check_one(path: Path | str, pictures: Mapping[str, str], dataset: SegmentationDataset, image_ids: Iterable[str]) -> None:
    """`check_picture` of the first of the images whose picture is known: folders that differ are told before anything is paid.

    Raises:
        ConfigError: as `check_picture`.
    """
    known = next((image_id for image_id in image_ids if image_key(image_id) in pictures), None)
    if known is None:
        return
    try:
        sample = dataset[dataset.image_ids.index(known)]
    except DataError:  # said where the image itself is read
        return
    check_picture(path, pictures, sample)
