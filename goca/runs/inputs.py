"""What a run reads besides its configuration: pictures, words and weights, each known by a hash.

A run is continued, and a finished one is taken for the answer, only where all three are what they were.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from goca.backbones.loading.pretrained import Pretrained
from goca.data.base import SegmentationDataset
from goca.data.datamodule import SegmentationDataModule
from goca.prompts.sources import PromptSource
from goca.runs.kinds import image_set
from goca.runs.provenance import checkpoint_identity
from goca.runs.rules import rules_hash

_DIGITS = 12


def inputs(data: SegmentationDataModule, prompts: PromptSource, backbone: Pretrained) -> dict[str, Any]:
    """What this run would read, after `setup` of data and prompts; cheap, as no model is loaded.

    Returns:
        `pictures`, see `pictures_of`; `words_hash`, that of the rules with the captions of this run's own images alone; and of
        a local checkpoint, which can change in its place, what `checkpoint_identity` gives.
    """
    found: dict[str, Any] = {
        "pictures": pictures_of(data.dataset),
        "words_hash": rules_hash(data.dataset, prompts, data.image_ids),
    }
    if Path(backbone.checkpoint).is_dir() and not backbone.lora:
        _ = backbone.opened  # only files of an opened checkpoint have digests
        found |= checkpoint_identity(backbone)
    return found


def pictures_of(dataset: SegmentationDataset) -> dict[str, str]:
    """A hash of the ids of all listed images, and one of the first image's picture and mask, which `first` names.

    Folders of equal file names, such as one picture set under several kinds of weather, differ in the latter.
    """
    first = dataset.image_ids[0]
    return {"ids": image_set(dataset.image_ids), "first": first, "content": _content(dataset, first)}


def _content(dataset: SegmentationDataset, image_id: str) -> str:
    """Of the files, as decoders round differently; of the values where a data set has no files."""
    total = hashlib.sha256()
    try:
        for path in (dataset.image_path(image_id), dataset.label_path(image_id)):
            total.update(path.read_bytes() if path is not None and path.is_file() else b"-")
    except NotImplementedError:
        sample = dataset[dataset.image_ids.index(image_id)]
        total.update(sample.image.tobytes())
        total.update(b"-" if sample.label is None else sample.label.tobytes())
    return total.hexdigest()[:_DIGITS]
