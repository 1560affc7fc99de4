"""Batches of samples for Lightning: which images, in which order, at which size."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Annotated, Any

import pytorch_lightning as L
from pydantic import Field, validate_call
from torch.utils.data import DataLoader, Dataset

from goca.data.base import CONFIG, Sample, SegmentationDataset
from goca.data.sizes import to_pixels
from goca.errors import ConfigError, DataError
from goca.ops import Grid

Size = int | Callable[[Grid], Grid] | None


@dataclasses.dataclass(eq=False)
class Unreadable:
    """Stands in a batch for an image that could not be read, so that one bad file need not end a run."""

    image_id: str
    reason: str


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
        limit: only the first N images (after `indices`).
        indices: only these positions of the data set, in this order.
        shard: `"k/n"`: every n-th of the remaining batches, beginning with the k-th (k from 1).
        keep_unreadable: leave `Unreadable` entries in the batches for the caller to record, instead of raising their error.

    Attributes:
        size: of `Sample.pixels`: the side of a square, or a function of each picture's (height, width); set before the first
            batch, None leaves pixels out.
        batches: positions in the data set, batch by batch, after `setup()`.
        total: number of images in all shards.
        done: ids of images that have results already; a batch is skipped if all its images are done.

    Batches are cut once and handed out whole: to shards, to the processes of a distributed run, and after an interruption. What
    an image is computed together with, and so its result to the last bit, depends on the batch size alone.
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
        self.size: Size = None
        self.batches: list[list[int]] = []
        self.total = 0
        self.done: frozenset[str] = frozenset()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # more processes than batches

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
        repeated = sorted({index for index in positions if positions.count(index) > 1}) if self.indices else []
        if repeated:
            raise ConfigError(f"indices name images more than once: {repeated[:8]}")
        positions = positions[: self.limit]
        self.total = len(positions)
        batches = [positions[first : first + self.batch_size] for first in range(0, self.total, self.batch_size)]
        offset, step = self.shard
        self.batches = batches[offset::step]
        if not self.batches:
            there_are = f"{len(batches)} batches of {self.batch_size}" if self.batch_size > 1 else f"{self.total} images"
            raise ConfigError(f"shard {offset + 1}/{step} is empty: there are only {there_are}")

    @property
    def positions(self) -> list[int]:
        """Positions in the data set of this shard's images, in order."""
        return [position for batch in self.batches for position in batch]

    @property
    def image_ids(self) -> list[str]:
        """Ids of this shard's images, in order."""
        return [self.dataset.image_ids[position] for position in self.positions]

    def open_batches(self, rank: int = 0, processes: int = 1) -> list[list[int]]:
        """Positions of the batches that are still to be done by the process of that rank; none falls to two processes."""
        ids = self.dataset.image_ids
        batches = [batch for batch in self.batches if not self.done.issuperset(ids[position] for position in batch)]
        return batches[rank::processes]

    def readable(self, rank: int = 0, processes: int = 1) -> Iterator[Sample]:
        """The samples of `open_batches` one by one, without pixels; images that cannot be read are left out."""
        for position in chain.from_iterable(self.open_batches(rank, processes)):
            try:
                sample = self.dataset[position]
            except DataError:
                continue  # it is reported when its batch comes
            yield sample

    def predict_dataloader(self) -> DataLoader[list[Sample | Unreadable]]:
        """The batches that are still to be done; under a distributed strategy, those of this process, none repeated."""
        mine = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = _Batches(self.dataset, self.open_batches(*mine), self.size)
        return DataLoader(batches, batch_size=None, num_workers=self.num_workers, shuffle=False, collate_fn=_unchanged)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Raise what a worker could not read: here, in the main process, the message stays one message."""
        if not self.keep_unreadable:
            for entry in batch:
                if isinstance(entry, Unreadable):
                    raise DataError(entry.reason)
        return batch


class _Batches(Dataset[list[Sample | Unreadable]]):
    """Whole batches of samples with their pixels, as the workers make them."""

    def __init__(self, dataset: SegmentationDataset, batches: list[list[int]], size: Size) -> None:
        self.dataset, self.batches, self.size = dataset, batches, size

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> list[Sample | Unreadable]:
        return [self._sample(position) for position in self.batches[index]]

    def _sample(self, position: int) -> Sample | Unreadable:
        try:
            sample = self.dataset[position]
        except DataError as error:
            return Unreadable(self.dataset.image_ids[position], str(error))
        if self.size is not None:
            height, width = sample.image.shape[:2]
            sample.pixels = to_pixels(sample.image, self.size((height, width)) if callable(self.size) else self.size)
        return sample


def _unchanged(batch: list[Sample | Unreadable]) -> list[Sample | Unreadable]:
    return batch
