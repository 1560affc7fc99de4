"""Which images come, in which order and shape."""

import numpy as np
import pytest
import pytorch_lightning as L
import torch
from PIL import Image

from goca.data.datamodule import SegmentationDataModule, Unreadable, parse_shard
from goca.data.sizes import to_pixels
from goca.errors import ConfigError, DataError
from goca.scenes.generator import CLASSES, TEST_SEEDS, TRAIN_SEEDS
from tests.data.conftest import Build


def _ids(datamodule: SegmentationDataModule) -> list[list[str]]:
    datamodule.setup()
    return [[sample.image_id for sample in batch] for batch in datamodule.predict_dataloader()]


def _flat(batches: list[list[str]]) -> list[str]:
    return [image_id for batch in batches for image_id in batch]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_keep_the_order_for_any_number_of_workers(build: Build, workers: int) -> None:
    batches = _ids(SegmentationDataModule(build("scenes", count=7), batch_size=3, num_workers=workers))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert _flat(batches) == [str(seed) for seed in TEST_SEEDS[:7]]


def test_indices_come_before_limit_and_limit_before_shards(build: Build) -> None:
    datamodule = SegmentationDataModule(build("scenes", count=9), indices=[8, 2, 5, 1, 0], limit=4, shard="2/2")
    assert _flat(_ids(datamodule)) == [str(TEST_SEEDS[i]) for i in (2, 1)]
    assert datamodule.image_ids == [str(TEST_SEEDS[i]) for i in (2, 1)]


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_shards_partition_the_data_set(build: Build, shards: int) -> None:
    parts = [_flat(_ids(SegmentationDataModule(build("scenes", count=7), shard=f"{k + 1}/{shards}"))) for k in range(shards)]
    assert sorted(_flat(parts)) == [str(seed) for seed in TEST_SEEDS[:7]]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_processes_share_what_is_left_without_overlap(build: Build, processes: int) -> None:
    """A batch is done only when all its images are; each of the others falls to one process."""
    datamodule = SegmentationDataModule(build("scenes", count=7), batch_size=2)
    datamodule.setup()
    datamodule.done = frozenset(datamodule.image_ids[:3])
    parts = [[sample.image_id for sample in datamodule.readable(rank, processes)] for rank in range(processes)]
    assert sorted(_flat(parts)) == datamodule.image_ids[2:]
    assert parts[0][:2] == datamodule.image_ids[2:4]


def test_pixels_are_made_for_the_size_the_model_asks(build: Build) -> None:
    datamodule = SegmentationDataModule(build("scenes", count=2), batch_size=2)
    datamodule.setup()
    assert next(iter(datamodule.predict_dataloader()))[0].pixels is None
    datamodule.size = 48
    sample = next(iter(datamodule.predict_dataloader()))[0]
    assert sample.pixels.shape == (3, 48, 48)
    assert sample.pixels.dtype == torch.float32
    expected = np.asarray(Image.fromarray(sample.image).resize((48, 48), Image.Resampling.BICUBIC))
    assert torch.equal(sample.pixels, torch.from_numpy(expected / np.float32(127.5) - 1).permute(2, 0, 1).float())


def test_pixels_span_minus_one_to_one() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[0] = 255
    pixels = to_pixels(image, 4)
    assert (pixels.min().item(), pixels.max().item()) == (-1, 1)


def test_splits_of_scenes_never_meet(build: Build) -> None:
    train, test = (build("scenes", split=split, count=50) for split in ("train", "test"))
    train.setup()
    test.setup()
    assert not set(train.image_ids) & set(test.image_ids)
    assert not set(TRAIN_SEEDS) & {int(image_id) for image_id in test.image_ids}
    assert train.classes.names == CLASSES
    sample = test[0]
    assert {train.classes.names[class_id] for class_id in sample.present} == set(sample.caption.split(", "))


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b", "1/0", "-1/2"])
def test_bad_shards_are_named(shard: str) -> None:
    with pytest.raises(ConfigError, match="k/n"):
        parse_shard(shard)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"indices": [0, 9]}, "indices beyond the 3 images"),
        ({"shard": "4/5"}, "shard 4/5 is empty"),
        ({"indices": []}, "empty"),
    ],
)
def test_selections_that_cannot_work_are_named(build: Build, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SegmentationDataModule(build("scenes", count=3), **options).setup()


class _Ids(L.LightningModule):
    def predict_step(self, batch: list, batch_idx: int) -> list[str]:
        return [f"{type(entry).__name__} {entry.image_id}" for entry in batch]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_message_or_one_entry(tmp_path, build: Build, workers: int) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "classes.txt").write_text("cat\n")
    Image.new("RGB", (8, 6)).save(tmp_path / "images" / "good.png")
    (tmp_path / "images" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    strict = SegmentationDataModule(build("folder", tmp_path), batch_size=2, num_workers=workers)
    with pytest.raises(DataError, match=r"bad\.png") as caught:
        L.Trainer(**quiet).predict(_Ids(), datamodule=strict)
    assert "Traceback" not in str(caught.value)
    tolerant = SegmentationDataModule(build("folder", tmp_path), batch_size=2, num_workers=workers, keep_unreadable=True)
    assert L.Trainer(**quiet).predict(_Ids(), datamodule=tolerant) == [["Unreadable bad", "Sample good"]]
    assert Unreadable("a", "b").reason == "b"
