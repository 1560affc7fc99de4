"""The benchmarks of the field: what mmsegmentation counts in the same files, by its rules written down plainly here."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from omegaconf import OmegaConf
from PIL import Image

from goca.data.__main__ import main
from goca.data.base import IGNORE
from goca.data.check import check
from goca.data.classes import ClassTable
from goca.data.download import archives_of
from tests.data.conftest import Build
from tests.helpers.options import option

NINE = ("voc21", "voc20", "context60", "context59", "coco_object", "coco_stuff171", "coco_stuff27", "cityscapes", "ade150")
CLASSES = dict(zip(NINE, (20, 20, 59, 59, 80, 171, 27, 19, 150), strict=True))
IMAGES = dict(zip(NINE, (1449, 1449, 5104, 5104, 5000, 5000, 2175, 500, 2000), strict=True))
WITH_BACKGROUND = ("voc21", "context60", "coco_object")
MISSING_THINGS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)  # values that no mask of COCO-Stuff holds
COARSE = (  # of the 182 values, A for the first: the 27 classes of PiCIE and DiffSeg
    "JLLLLLLLLIIIIIIHHHHHHHHHHGGGGGGGGKKKKKKKKKKFFFFFFFFCCCCCCCCCCDDDDDDDDDDAAAAAABBBBBBEEEEEEEERRWUUWPZQNMMRRXPPRPVPZNNNNNW["
    "OOPWVVYUWPRQPWYVRZQVRWQVVZV[VYUROV[PXUVYPYWZPURRWOSSSSSSS[[TTY"
)
TRAIN_IDS = dict(zip((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), range(19), strict=True))
SEED = 7


# ------------------------------------------------------------------------------------------- mmsegmentation's own rules
def reduced(mask: np.ndarray) -> np.ndarray:
    """`reduce_zero_label`: 0 is ignored, everything else moves down by one, and 255 stays."""
    mask = mask.astype(int)
    return np.where((mask == 0) | (mask == 255), 255, mask - 1)


def stuff_train_ids(mask: np.ndarray) -> np.ndarray:
    """coco_stuff164k.py: values without the missing ones, numbered from 0."""
    out = np.full(mask.shape, 255)
    number = 0
    for value in range(182):
        if value not in MISSING_THINGS:
            out[mask == value] = number
            number += 1
    return out


def object_train_ids(mask: np.ndarray) -> np.ndarray:
    """cvt_coco_object.py: the train id plus one for values up to 90, 0 for all others and for 255."""
    return np.where(mask <= 90, stuff_train_ids(mask) + 1, 0)


def expected(name: str, mask: np.ndarray) -> np.ndarray:
    """What mmsegmentation has in memory for a stored mask: 255 is ignored, classes count from 0."""
    if name == "cityscapes":
        return np.vectorize(lambda value: TRAIN_IDS.get(value, 255))(mask)
    if name == "coco_stuff27":
        return np.vectorize(lambda value: 255 if value == 255 else ord(COARSE[value]) - ord("A"))(mask)
    rules: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "voc21": lambda mask: mask, "voc20": reduced, "ade150": reduced, "context60": lambda mask: mask,
        "context59": reduced, "coco_object": object_train_ids, "coco_stuff171": stuff_train_ids,
    }  # fmt: skip
    return rules[name](mask)


def as_mmseg(name: str, label: np.ndarray) -> np.ndarray:
    """Our class ids in mmsegmentation's numbers."""
    label = label.astype(int)
    if name.startswith("context"):
        names = ClassTable.load("context").names
        order = [0, *(1 + sorted(names[1:]).index(name) for name in names[1:])]
        label = np.where(label == IGNORE, IGNORE, np.array([*order, *range(len(order), 256)])[label])
    return label if name in WITH_BACKGROUND else np.where(label == IGNORE, 255, label - 1)


# ------------------------------------------------------------------------------------------------------- made-up folders
def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def stored(name: str, shape: tuple[int, int] = (24, 30)) -> np.ndarray:
    """Random values of every kind that the data set's masks may hold."""
    ranges = {
        "voc": [*range(21), 255], "con": range(60), "cit": range(34), "ade": range(151),
        "coc": [v for v in range(182) if v not in MISSING_THINGS] + [255],
    }  # fmt: skip
    values = np.array(list(ranges[name[:3]]))
    mask = np.random.default_rng(SEED).choice(values, shape)
    mask.flat[: len(values)] = values  # each at least once
    return mask


def context_mat(mask: np.ndarray) -> np.ndarray:
    """The 459-class labels of a converted mask: the converter's own lookup, backwards."""
    mapping = (
        *(0, 2, 259, 260, 415, 324, 9, 258, 144, 18, 19, 22, 23, 397, 25, 284, 158, 159, 416, 33, 162, 420, 454, 295, 296, 427),
        *(44, 45, 46, 308, 59, 440, 445, 31, 232, 65, 354, 424, 68, 326, 72, 458, 34, 207, 80, 355, 85, 347, 220, 349, 360, 98),
        *(187, 104, 105, 366, 189, 368, 113, 115),
    )
    names = ClassTable.load("context").names
    return np.array([mapping[names.index(name)] for name in ["background", *sorted(names[1:])]])[mask]


def make_official(root: Path, name: str, mask: np.ndarray) -> None:
    picture = np.zeros((*mask.shape, 3))
    kind = name[:3]
    if kind == "voc":
        save(root / "VOCdevkit/VOC2012/JPEGImages/a.jpg", picture)
        save(root / "VOCdevkit/VOC2012/SegmentationClass/a.png", mask)
        write(root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", "a\n")
    elif kind == "con":
        save(root / "VOCdevkit/VOC2010/JPEGImages/a.jpg", picture)
        write(root / "VOCdevkit/VOC2010/ImageSets/Main/val.txt", "a\n2010_001606\n")
        (root / "VOCdevkit/VOC2010/trainval").mkdir()
        scipy.io.savemat(root / "VOCdevkit/VOC2010/trainval/a.mat", {"LabelMap": context_mat(mask).astype(np.uint16)})
    elif kind == "coc":
        save(root / "coco/val2017/a.jpg", picture)
        save(root / "coco/stuffthingmaps/val2017/a.png", mask)
        write(root / "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt", "a\n")
    elif kind == "cit":
        save(root / "cityscapes/leftImg8bit/val/town/town_1_leftImg8bit.png", picture)
        save(root / "cityscapes/gtFine/val/town/town_1_gtFine_labelIds.png", mask)
    else:
        save(root / "ADEChallengeData2016/images/validation/a.jpg", picture)
        save(root / "ADEChallengeData2016/annotations/validation/a.png", mask)


def make_converted(root: Path, name: str, mask: np.ndarray) -> None:
    """As mmsegmentation's converters leave it: nothing official is left where they write other masks."""
    picture = np.zeros((*mask.shape, 3))
    if name.startswith("context"):
        save(root / "VOCdevkit/VOC2010/JPEGImages/a.jpg", picture)
        save(root / "VOCdevkit/VOC2010/SegmentationClassContext/a.png", mask)
        write(root / "VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt", "a\n")
    elif name == "coco_object":
        save(root / "coco_object/images/val2017/a.jpg", picture)
        save(root / "coco_object/annotations/val2017/a_instanceTrainIds.png", object_train_ids(mask))
    elif name.startswith("coco"):
        save(root / "coco_stuff164k/images/val2017/a.jpg", picture)
        save(root / "coco_stuff164k/annotations/val2017/a_labelTrainIds.png", stuff_train_ids(mask))
        write(root / "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt", "a\nb\n")
    elif name == "cityscapes":
        save(root / "cityscapes/leftImg8bit/val/town/town_1_leftImg8bit.png", picture)
        save(root / "cityscapes/gtFine/val/town/town_1_gtFine_labelTrainIds.png", expected(name, mask))
    elif name == "ade150":
        make_official(root / "ade", name, mask)
    else:
        make_official(root, name, mask)


@pytest.mark.parametrize("name", NINE)
def test_made_up_folders_are_counted_as_mmsegmentation_counts_them(tmp_path: Path, build: Build, name: str) -> None:
    mask = stored(name)
    want = expected(name, mask)
    for kind, make in (("official", make_official), ("converted", make_converted)):
        make(tmp_path / kind, name, mask)
        dataset = build(name, tmp_path / kind, "ovss")
        assert len(dataset) == 1
        assert len(dataset.classes) - 1 == CLASSES[name]
        assert dataset.has_background == (name in WITH_BACKGROUND)
        got = as_mmseg(name, dataset[0].label)
        assert np.array_equal(got, want), kind
        assert bool(dataset.remarks) == (kind == "converted" and name not in ("voc21", "voc20", "ade150"))
    counted = {"voc21": set(range(21)), "context60": set(range(60)), "coco_object": set(range(81))}
    assert set(np.unique(want)) - {255} == counted.get(name, set(range(CLASSES[name])))


REAL = {  # without Context, of which there is no real label
    "voc21": {"split": "trainval"}, "voc20": {"split": "trainval"}, "coco_object": {}, "coco_stuff171": {},
    "coco_stuff27": {"image_list": "all"}, "cityscapes": {}, "ade150": {},
}  # fmt: skip


@pytest.mark.parametrize(("name", "options"), REAL.items())
def test_real_files_are_counted_as_mmsegmentation_counts_them(samples: Path, build: Build, name: str, options: dict) -> None:
    dataset = build(name, samples, "ovss", **options)
    for sample in dataset:
        raw = np.asarray(Image.open(dataset.label_path(sample.image_id))).astype(int)
        want = expected(name, raw)
        got = as_mmseg(name, sample.label)
        assert np.array_equal(np.bincount(got.ravel(), minlength=256), np.bincount(want.ravel(), minlength=256))
        assert np.array_equal(got, want)
    assert len(dataset) == {"voc": 5, "coc": 5, "cit": 1, "ade": 2}[name[:3]]


# ------------------------------------------------------------------------------------------------ names, counts, commands
@pytest.mark.parametrize("name", NINE)
def test_the_check_knows_every_benchmark(tmp_path: Path, build: Build, name: str) -> None:
    make_converted(tmp_path, name, stored(name))
    report = check(build(name, tmp_path, "ovss", split="val"))
    assert (report.images, report.expected, report.problems) == (1, IMAGES[name], ())
    assert len(report.classes) == CLASSES[name]
    assert not report.complete


@pytest.mark.parametrize("dataset", ["context", "context60", "context59"])
def test_the_check_knows_context_as_the_released_code_takes_it(tmp_path: Path, build: Build, dataset: str) -> None:
    """964 images of VOC 2012's list of `train` have a label; nobody says how many of `val` have."""
    (tmp_path / "VOCdevkit/VOC2010/trainval").mkdir(parents=True)
    assert build(dataset, tmp_path, "upstream").split == "train"
    assert check(build(dataset, tmp_path, "upstream")).expected == 964
    assert check(build(dataset, tmp_path, "upstream", split="val")).expected is None
    assert check(build(dataset, tmp_path, split="train")).expected in (4996, 4998)


def test_the_check_is_a_command_for_them(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_converted(tmp_path, "context59", stored("context59"))
    code = main(["check", "dataset=context59", f"paths.data={tmp_path}", "protocol=ovss", "split=val"])
    printed = capsys.readouterr().out
    assert code == 1
    assert "context59 val: 1 of 5104 images, 59 of 59 classes occur: incomplete" in printed
    assert "the labels are those of SegmentationClassContext" in printed


@pytest.mark.parametrize(
    ("name", "alias"),
    [("voc", "voc21"), ("context", "context60"), ("coco_object", "coco_object_panoptic"), ("ade20k", "ade150")],
)
def test_earlier_names_keep_their_meaning(name: str, alias: str) -> None:
    """The same settings under both names but for the name itself, and the list of Context's images."""
    earlier, now = (OmegaConf.to_container(option("dataset", choice)) for choice in (name, alias))
    differing = {key for key in earlier.keys() | now.keys() if earlier.get(key) != now.get(key)}
    assert differing <= {"name", "table", "image_list", "annotation"}
    assert earlier["name"] == name
    assert earlier.get("image_list", "all") == "all"


def test_coco_object_is_that_of_the_benchmark_under_its_protocol_alone(tmp_path: Path, build: Build) -> None:
    save(tmp_path / "coco/val2017/a.jpg", np.zeros((1, 3, 3)))
    save(tmp_path / "coco/stuffthingmaps/val2017/a.png", np.array([[0, 100, 255]]))
    save(tmp_path / "coco/annotations/panoptic_val2017/a.png", np.array([[[5, 0, 0], [0, 1, 0], [0, 0, 0]]]))
    segments = [{"id": 5, "category_id": 90}, {"id": 256, "category_id": 200}]
    annotation = {"annotations": [{"file_name": "a.png", "segments_info": segments}]}
    write(tmp_path / "coco/annotations/panoptic_val2017.json", json.dumps(annotation))
    assert build("coco_object", tmp_path, "ovss")[0].label.tolist() == [[1, 0, 0]]
    assert build("coco_object", tmp_path, annotation="stuffthingmaps")[0].label.tolist() == [[1, 0, 0]]
    for protocol in ("standard", "ovss"):
        assert build("coco_object_panoptic", tmp_path, protocol)[0].label.tolist() == [[80, 0, IGNORE]]


def test_coco_stuff_27_keeps_all_classes_but_under_upstream(tmp_path: Path, build: Build) -> None:
    save(tmp_path / "coco/val2017/a.jpg", np.zeros((1, 4, 3)))
    save(tmp_path / "coco/stuffthingmaps/val2017/a.png", np.array([[51, 120, 61, 164]]))
    write(tmp_path / "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt", "a\nelsewhere\n")
    dataset = build("coco_stuff27", tmp_path)
    assert dataset[0].label.tolist() == [[3, 15, 4, 16]]
    assert dataset.left_out == {"images of the curated list without a mask": ["elsewhere"]}
    assert all(dataset.classes.synonyms[1:])
    assert build("coco_stuff27", tmp_path, "upstream")[0].label.tolist() == [[3, 3, 4, 4]]
    assert build("coco_stuff27", tmp_path, "upstream").classes.synonyms[15] == ()
    for protocol in ("standard", "upstream"):
        assert build("coco_stuff", tmp_path, protocol)[0].label.tolist() == [[3, 3, 4, 4]]


def test_converted_masks_beside_official_ones_are_left_alone(tmp_path: Path, build: Build) -> None:
    mask = stored("coco_stuff171")
    save(tmp_path / "coco_stuff164k/images/val2017/a.jpg", np.zeros((*mask.shape, 3)))
    for ending, values in ((".png", mask), ("_labelTrainIds.png", stuff_train_ids(mask))):
        save(tmp_path / f"coco_stuff164k/annotations/val2017/a{ending}", values)
    dataset = build("coco_stuff171", tmp_path, "ovss")
    assert [sample.image_id for sample in dataset] == ["a"]
    assert np.array_equal(as_mmseg("coco_stuff171", dataset[0].label), expected("coco_stuff171", mask))


def test_what_can_be_fetched_is_fetched_for_every_name(build: Build) -> None:
    for name in set(NINE) - {"cityscapes"}:
        assert archives_of(build(name, protocol="ovss").archives, "val"), name
    panoptic, maps = (archives_of(build("coco_object", protocol=p).archives, "val") for p in ("standard", "ovss"))
    assert "panoptic" in panoptic[-1].url
    assert "stuffthingmaps" in maps[-1].url
