"""Every real file of ../shared/samples is read, and pixels chosen by looking at the pictures have the class one sees there."""

from pathlib import Path

import numpy as np
import pytest

from goca.data.base import IGNORE
from goca.data.masks import read_indices
from tests.data.conftest import Build

# data set, split, image, then (x, y, what a person sees there; None for pixels without a class)
PIXELS = [
    ("voc", "train", "2007_000032", [(240, 140, "aeroplane"), (202, 205, "person"), (250, 20, "background")]),
    ("voc", "val", "2007_000033", [(87, 155, "aeroplane"), (250, 40, "background")]),
    ("voc", "train", "2007_000243", [(231, 154, "aeroplane"), (30, 30, "background")]),
    ("voc", "train", "2007_000256", [(200, 165, "aeroplane"), (250, 300, "background")]),
    (
        "voc",
        "trainval",
        "2011_000003",
        [(250, 190, "person"), (379, 182, "bottle"), (350, 310, None), (50, 50, "background")],
    ),
    (
        "coco_stuff",
        "val",
        "000000000139",
        [(80, 215, "electronics"), (240, 140, "window"), (440, 220, "person"), (280, 330, "floor"), (355, 235, "furniture")],
    ),
    ("coco_stuff", "val", "000000000785", [(390, 180, "person"), (100, 250, "ground")]),
    ("coco_stuff", "val", "000000001268", [(595, 300, "person"), (300, 170, "water")]),
    ("coco_stuff", "val", "000000001503", [(188, 55, "electronics"), (240, 180, "electronics"), (142, 191, "electronics")]),
    ("coco_stuff", "val", "000000001993", [(464, 274, "furniture"), (528, 97, "wall")]),
    ("coco_object", "val", "000000000139", [(80, 215, "tv"), (440, 220, "person"), (280, 330, "background")]),
    (
        "coco_object",
        "val",
        "000000142238",
        [(408, 300, "person"), (364, 122, "sports ball"), (320, 390, "background"), (100, 150, "background")],
    ),
    (
        "cityscapes",
        "val",
        "frankfurt_000000_000294",
        [(100, 85, "road"), (40, 30, "building"), (190, 60, "car"), (122, 5, "sky"), (125, 35, "vegetation"), (128, 120, None)],
    ),
    (
        "cityscapes",
        "train",
        "aachen_000000_000019",
        [(1000, 700, "road"), (717, 460, "car"), (1195, 102, "building"), (1672, 150, "vegetation"), (102, 614, "terrain")],
    ),
    (
        "ade20k",
        "val",
        "ADE_val_00000001",
        [(150, 80, "sky"), (300, 300, "building"), (300, 450, "grass"), (60, 365, "tree")],
    ),
    ("ade20k", "val", "ADE_val_00000002", [(330, 150, "building"), (200, 50, "sky"), (40, 230, "tree")]),
    ("ade20k", "train", "ADE_train_00000001", [(340, 100, "ceiling"), (341, 410, "fountain"), (100, 470, "floor")]),
]


@pytest.mark.parametrize(
    ("name", "split", "image_id", "pixels"), PIXELS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_known_pixels_have_known_classes(samples: Path, build: Build, name, split, image_id, pixels) -> None:
    dataset = build(name, samples, split=split)
    dataset.setup()
    dataset.image_ids = [image_id]  # some of the files are on none of the lists beside them
    sample = dataset[0]
    assert sample.image.dtype == np.uint8
    assert sample.image.shape == (*sample.label.shape, 3)
    seen = {(x, y): dataset.classes.names[sample.label[y, x]] if sample.label[y, x] != IGNORE else None for x, y, _ in pixels}
    assert seen == {(x, y): name for x, y, name in pixels}
    assert sample.present == tuple(sorted(set(np.unique(sample.label).tolist()) - {0, IGNORE}))


@pytest.mark.parametrize("name", ["voc", "coco_object", "coco_stuff", "cityscapes", "ade20k"])
@pytest.mark.parametrize("protocol", ["standard", "upstream"])
def test_protocols_treat_void_their_way(samples: Path, build: Build, name: str, protocol: str) -> None:
    for split in ("train", "val") if name in ("voc", "cityscapes", "ade20k") else ("val",):
        dataset = build(name, samples, protocol, split=split)
        labels = np.concatenate([sample.label.ravel() for sample in dataset])
        if protocol == "upstream":
            assert dataset.has_background
            assert IGNORE not in labels
        else:
            assert dataset.has_background == (name in ("voc", "coco_object"))
            assert dataset.has_background == (0 in labels)
            assert IGNORE in labels


def test_official_values_show_that_the_released_lookup_is_off_by_one(samples: Path, build: Build) -> None:
    """docs/parity.md, E8: the skier's pixels store 0. Mapped as documented they are a person; shifted they are background."""
    right = build("coco_stuff", samples, "upstream")
    shifted = build("coco_stuff", samples, "upstream", shift=True)
    index = [sample.image_id for sample in right].index("000000000785")
    assert right.classes.names[right[index].label[180, 390]] == "person"
    assert shifted[index].label[180, 390] == 0


def test_masks_are_read_as_they_are_stored(samples: Path) -> None:
    """A 16-bit instance map keeps its values, a palette mask its indices, and label ids agree with train ids."""
    folder = samples / "cityscapes" / "gtFine" / "val" / "frankfurt"
    stem = "frankfurt_000000_000294_gtFine"
    instances, ids = (read_indices(folder / f"{stem}_{kind}.png") for kind in ("instanceIds", "labelIds"))
    assert instances.max() > 26000
    assert np.array_equal(np.where(instances >= 1000, instances // 1000, instances), ids)


def test_cityscapes_ids_agree_with_the_official_train_ids(samples: Path, build: Build) -> None:
    dataset = build("cityscapes", samples)
    path = dataset.label_path("frankfurt_000000_000294")
    train_ids = read_indices(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    expected = np.where(train_ids == 255, IGNORE, train_ids + 1)
    assert np.mean(expected == dataset[0].label) > 0.995  # both files were shrunk on their own, so a few borders differ
