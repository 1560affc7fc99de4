"""Data set folders that are small, incomplete or wrong."""

import json
import re
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from hydra.errors import InstantiationException
from PIL import Image

from goca.data.base import IGNORE
from goca.data.protocol import Protocol
from goca.errors import ConfigError, DataError
from goca.paths import CONF
from tests.data.conftest import Build

ALL = ["voc", "context", "coco_object", "coco_stuff", "cityscapes", "ade20k", "folder"]


def picture(path: Path, values: np.ndarray | tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((*values, 3), np.uint8) if isinstance(values, tuple) else values
    Image.fromarray(array).save(path)


def make_voc(root: Path, mask: np.ndarray, ids: str = "a\n") -> Path:
    base = root / "VOCdevkit" / "VOC2012"
    picture(base / "JPEGImages" / "a.jpg", (3, 4))
    picture(base / "SegmentationClass" / "a.png", mask)
    for split in ("train", "val"):
        (base / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
        (base / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(ids)
    return root


def make_context(root: Path, label: np.ndarray | bytes, key: str = "LabelMap") -> Path:
    base = root / "VOCdevkit" / "VOC2010"
    picture(base / "JPEGImages" / "a.jpg", (3, 4))
    (base / "trainval").mkdir()
    if isinstance(label, bytes):
        (base / "trainval" / "a.mat").write_bytes(label)
    else:
        scipy.io.savemat(base / "trainval" / "a.mat", {key: label})
    for year, kind in (("VOC2010", "Main"), ("VOC2012", "Segmentation")):
        lists = root / "VOCdevkit" / year / "ImageSets" / kind
        lists.mkdir(parents=True)
        for split in ("train", "val"):
            (lists / f"{split}.txt").write_text("a\n" if kind == "Main" else "a\nunlabelled\n")
    return root


def make_panoptic(root: Path, annotation: str | None = None, file_name: str = "1.png") -> Path:
    base = root / "coco"
    picture(base / "val2017" / "1.jpg", (1, 3))
    picture(base / "annotations" / "panoptic_val2017" / "1.png", np.array([[[5, 0, 0], [0, 1, 0], [0, 0, 0]]], np.uint8))
    segments = [{"id": 5, "category_id": 90}, {"id": 256, "category_id": 200}]
    text = json.dumps({"annotations": [{"file_name": file_name, "segments_info": segments}]})
    (base / "annotations" / "panoptic_val2017.json").write_text(text if annotation is None else annotation)
    return root


def make_folder(root: Path, mask: np.ndarray | None = None, classes: str = "cat, kitten\ngrass\n") -> Path:
    picture(root / "images" / "a.png", (3, 4))
    if mask is not None:
        picture(root / "masks" / "a.png", mask)
    (root / "classes.txt").write_text(classes)
    return root


MASK = np.zeros((3, 4), np.uint8)


# ------------------------------------------------------------------------------------------------------- right folders
def test_context_takes_59_of_459_classes(tmp_path: Path, build: Build) -> None:
    raw = np.array([[2, 259, 0, 431]] * 3, np.uint16)
    make_context(tmp_path, raw)
    sixty, fifty_nine = build("context", tmp_path), build("context", tmp_path, background=False)
    assert sixty[0].label[0].tolist() == [1, 2, 0, 0]
    assert fifty_nine[0].label[0].tolist() == [1, 2, IGNORE, IGNORE]
    assert (sixty.has_background, fifty_nine.has_background) == (True, False)
    assert sixty[0].present == (1, 2)
    assert [sample.image_id for sample in build("context", tmp_path, "upstream")] == ["a"]


def test_context_finds_its_images_in_voc_2012(tmp_path: Path, build: Build) -> None:
    make_context(tmp_path, np.ones((3, 4), np.uint16))
    (tmp_path / "VOCdevkit" / "VOC2010" / "JPEGImages").rename(tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages")
    assert build("context", tmp_path)[0].image.shape == (3, 4, 3)


def test_panoptic_void_is_ignored_and_stuff_is_background(tmp_path: Path, build: Build) -> None:
    make_panoptic(tmp_path)
    assert build("coco_object", tmp_path)[0].label.tolist() == [[80, 0, IGNORE]]
    assert build("coco_object", tmp_path, "upstream")[0].label.tolist() == [[80, 0, 0]]


def test_own_images_with_and_without_masks(tmp_path: Path, build: Build) -> None:
    make_folder(tmp_path)
    sample = build("folder", tmp_path)[0]
    assert (sample.image_id, sample.label, sample.present) == ("a", None, ())
    make_folder(tmp_path, np.array([[0, 1, 2, 255]] * 3, np.uint8))
    dataset = build("folder", tmp_path)
    assert dataset[0].label[0].tolist() == [IGNORE, 1, 2, IGNORE]
    assert dataset[0].present == (1, 2)
    assert dataset.classes.id_of("kitten") == (1,)
    assert build("folder", tmp_path, background=True)[0].label[0].tolist() == [0, 1, 2, IGNORE]
    assert build("folder", tmp_path, class_names=["dog", "sky"]).classes.names == ("background", "dog", "sky")


@pytest.mark.parametrize("name", [*ALL, "scenes"])
def test_the_protocol_chooses_the_split(build: Build, name: str) -> None:
    expected = {"voc": "train", "context": "train", "scenes": "test"}.get(name, "val")
    assert build(name, protocol="upstream").split == expected
    assert build(name).split == ("test" if name == "scenes" else "val")
    assert build(name, protocol="upstream").has_background


def test_voc_without_background_ignores_it(tmp_path: Path, build: Build) -> None:
    make_voc(tmp_path, np.array([[0, 3, 255, 20]] * 3, np.uint8))
    assert build("voc", tmp_path)[0].label[0].tolist() == [0, 3, IGNORE, 20]
    assert build("voc", tmp_path, background=False)[0].label[0].tolist() == [IGNORE, 3, IGNORE, 20]
    assert build("voc", tmp_path, "upstream")[0].label[0].tolist() == [0, 3, 0, 20]


def test_the_documented_recipe_for_a_new_data_set_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (CONF.parent / "docs" / "datasets.md").read_text(encoding="utf-8")
    code = textwrap.dedent(re.search(r"```python\n(.*?)```", text, re.S)[1])
    imports = """
from functools import cached_property
from pathlib import Path
from typing import ClassVar
import numpy as np
from pydantic.dataclasses import dataclass
from goca.data.base import CONFIG, SegmentationDataset
from goca.data.label_maps import identity_map
"""
    names = {"__name__": "mine"}
    monkeypatch.setitem(sys.modules, "mine", types.ModuleType("mine"))
    exec(imports + code, names)
    picture(tmp_path / "mine" / "val" / "a.jpg", (3, 4))
    picture(tmp_path / "mine" / "val" / "a_mask.png", np.array([[0, 1, 2, 255]] * 3, np.uint8))
    standard = Protocol(name="standard", void="ignore", unseen_classes="skip", prompt="classes")
    dataset = names["Mine"](protocol=standard, root=tmp_path)
    assert dataset[0].label[0].tolist() == [IGNORE, 1, 2, IGNORE]
    assert len(dataset) == 1


# ------------------------------------------------------------------------------------------------------- wrong folders
@pytest.mark.parametrize("name", ALL)
def test_a_missing_folder_shows_the_tree_and_the_source(tmp_path: Path, build: Build, name: str) -> None:
    dataset = build(name, tmp_path / "absent")  # construction touches no file
    with pytest.raises(DataError) as caught:
        dataset.setup()
    assert "does not exist" in str(caught.value)
    assert dataset.TREE in str(caught.value)
    assert dataset.SOURCE in str(caught.value)


BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "unknown id": ("voc", lambda root: make_voc(root, MASK + 77), r"a\.png has values that are no ids of voc: 77"),
    "mask of another size": ("voc", lambda root: make_voc(root, np.zeros((4, 4), np.uint8)), "mask of a is 4 x 4.*image 4 x 3"),
    "colour mask": ("voc", lambda root: make_voc(root, np.zeros((3, 4, 3), np.uint8)), r"a\.png is a colour picture"),
    "16-bit mask": ("voc", lambda root: make_voc(root, MASK.astype(np.uint16) + 24001), "no ids of voc: 24001"),
    "empty list": ("voc", lambda root: make_voc(root, MASK, ids="\n"), "lists no image"),
    "missing image": ("voc", lambda root: make_voc(root, MASK, ids="b\n"), r"missing file: .*b\.png"),
    "list that leaves the folder": ("voc", lambda root: make_voc(root, MASK, ids="../../a\n"), "leads out of its folder"),
    "repeated id": ("voc", lambda root: make_voc(root, MASK, ids="a\nb\na\n"), "names 'a' more than once"),
    "no LabelMap": ("context", lambda root: make_context(root, MASK, key="Other"), r"a\.mat holds no LabelMap"),
    "broken mat": ("context", lambda root: make_context(root, b"MATLAB 5.0 but no more"), r"cannot read the label .*a\.mat"),
    "fractional labels": ("context", lambda root: make_context(root, np.ones((3, 4)) * 0.5), "matrix of integers"),
    "id above 459": ("context", lambda root: make_context(root, np.full((3, 4), 460, np.uint16)), "no ids of context: 460"),
    "not JSON": ("coco_object", lambda root: make_panoptic(root, "{"), "panoptic_val2017.json is not a COCO panoptic"),
    "other JSON": ("coco_object", lambda root: make_panoptic(root, '{"annotations": [1]}'), "not a COCO panoptic annotation"),
    "unlisted segment": (
        "coco_object",
        lambda root: make_panoptic(root, '{"annotations": [{"file_name": "1.png", "segments_info": []}]}'),
        r"1\.png has segments that the annotation does not list: \[5, 256\]",
    ),
    "annotation that leaves the folder": (
        "coco_object",
        lambda root: make_panoptic(root, file_name="../../../1.png"),
        "leads out of its folder",
    ),
    "no classes": ("folder", lambda root: make_folder(root, classes="\n"), r"classes\.txt: the class list is empty"),
    "class twice": ("folder", lambda root: make_folder(root, classes="cat\ncat\n"), "two classes: cat"),
    "own mask with unknown id": ("folder", lambda root: make_folder(root, MASK + 3), "no ids of folder: 3"),
    "mask missing": (
        "folder",
        lambda root: picture(make_folder(root, MASK) / "images" / "b.jpg", (3, 4)),
        "lacks the masks.*b",
    ),
    "two images of one name": ("folder", lambda root: picture(make_folder(root) / "images" / "a.jpg", (3, 4)), "one name: a"),
    "no images": ("folder", lambda root: (make_folder(root) / "images" / "a.png").unlink(), "lists no image"),
}


@pytest.mark.parametrize(("name", "make", "message"), BAD.values(), ids=BAD)
def test_bad_data_is_one_clear_error(tmp_path: Path, build: Build, name: str, make: Callable, message: str) -> None:
    make(tmp_path)
    with pytest.raises((DataError, ConfigError), match=message):
        build(name, tmp_path)[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"split": "test"}, "no split 'test'; splits: train, val, trainval"),
        ({"synonyms": "mine"}, "'corrected' or 'upstream'"),
        ({"max_pixels": 0}, "greater than 0"),
        ({"rot": "x"}, "rot"),
    ],
)
def test_bad_options_are_named(build: Build, overrides: dict, message: str) -> None:
    with pytest.raises((ConfigError, InstantiationException)) as caught:
        build("voc", **overrides)
    assert message in str(caught.value)
