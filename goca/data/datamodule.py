"""Batches of samples for Lightning: which images, in which order, at which size."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any

import numpy as np
import pytorch_lightning as L
import torch
from PIL import Image
from pydantic import Field, validate_call
from torch.utils.data import DataLoader, Dataset

from goca.data.base import CONFIG, Sample, SegmentationDataset
from goca.errors import ConfigError, DataError


@dataclasses.dataclass(eq=False)
class Unreadable:
    """Stands in a batch for an image that could not be read, so that one bad file need not end a run."""

    image_id: str
    reason: str


def to_pixels(image: np.ndarray, size: int) -> torch.Tensor:
    """(H, W, 3) uint8 -> (3, size, size) float in [-1, 1]; bicubic, the aspect ratio is not kept."""
    if image.shape[:2] != (size, size):
        image = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 127.5 - 1


def parse_shard(shard: str | None) -> tuple[int, int]:
    """`"3/16"` -> (2, 16): the third of sixteen shards; None is the whole.

    Raises:
        ConfigError: not of the form k/n with 1 <= k <= n.
    """
    if shard is None:
        return 0, 1
    match = re.fullmatch(r"(\d+)/(\d+)", shard.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"shard must be k/n with k from 1 to n, such as 3/16; got {shard!r}")
    return int(match[1]) - 1, int(match[2])


class SegmentationDataModule(L.LightningDataModule):
    """Batches are lists of `Sample`, in the order of the data set, whatever the number of workers.

    Args:
        dataset: the data set.
        batch_size, num_workers: as in a DataLoader; reading and resizing happen in the workers.
        limit: only the first so many images (after `indices`).
        indices: only these positions of the data set, in this order.
        shard: `"k/n"`: every n-th of the remaining images, beginning with the k-th (k from 1).
        keep_unreadable: leave `Unreadable` entries in the batches for the caller to record, instead of raising their error.

    Attributes:
        size: side in pixels of `Sample.pixels`; set by the model before the first batch, None leaves pixels out.
        positions: positions in the data set of the images that will come, after `setup()`.
    """

    @validate_call(config=CONFIG)
    def __init__(
        self,
        dataset: SegmentationDataset,
        batch_size: Annotated[int, Field(ge=1)] = 1,
        num_workers: Annotated[int, Field(ge=0)] = 0,
        limit: Annotated[int, Field(ge=1)] | None = None,
        indices: list[Annotated[int, Field(ge=0)]] | None = None,
        shard: str | None = None,
        keep_unreadable: bool = False,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.batch_size, self.num_workers, self.keep_unreadable = batch_size, num_workers, keep_unreadable
        self.limit, self.indices = limit, indices
        self.shard = parse_shard(shard)
        self.size: int | None = None
        self.positions: list[int] = []

    def setup(self, stage: str | None = None) -> None:
        """List the images.

        Raises:
            DataError: the data set's folder is not as it should be.
            ConfigError: an index beyond the data set, or a shard without images.
        """
        self.dataset.setup()
        count = len(self.dataset)
        positions = list(range(count)) if self.indices is None else self.indices
        beyond = [index for index in positions if index >= count]
        if beyond:
            raise ConfigError(f"indices beyond the {count} images of {self.dataset.name} ({self.dataset.split}): {beyond[:8]}")
        positions = positions[: self.limit]
        offset, step = self.shard
        self.positions = positions[offset::step]
        if not self.positions:
            raise ConfigError(f"shard {offset + 1}/{step} is empty: there are only {len(positions)} images")

    @property
    def image_ids(self) -> list[str]:
        """Ids of the images that will come, in order."""
        return [self.dataset.image_ids[position] for position in self.positions]

    def predict_dataloader(self) -> DataLoader[Sample | Unreadable]:
        return DataLoader(
            _Prepared(self.dataset, self.positions, self.size),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            shuffle=False,
            collate_fn=list,
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Raise what a worker could not read: here, in the main process, the message stays one message."""
        if not self.keep_unreadable:
            for entry in batch:
                if isinstance(entry, Unreadable):
                    raise DataError(entry.reason)
        return batch


class _Prepared(Dataset[Sample | Unreadable]):
    """The chosen samples with their pixels, as the workers make them."""

    def __init__(self, dataset: SegmentationDataset, positions: list[int], size: int | None) -> None:
        self.dataset, self.positions, self.size = dataset, positions, size

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        position = self.positions[index]
        try:
            sample = self.dataset[position]
        except DataError as error:
            return Unreadable(self.dataset.image_ids[position], str(error))
        if self.size is not None:
            sample.pixels = to_pixels(sample.image, self.size)
        return sample
