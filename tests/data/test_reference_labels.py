"""The label maps of the released code, from the same raw masks.

| case | what we do |
|---|---|
| city, voc, ade, context, coco-object | equal under protocol `upstream` |
| coco-stuff (E8) | equal with `shift: true`; the default maps the official values as they are documented |
| coco-object_id_collision (E9) | differs on the pixels that upstream relabels twice: every segment is looked up once |
"""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from goca.data.base import present_classes
from tests.data.conftest import Build

NAMES = {"city": "cityscapes", "coco-stuff": "coco_stuff", "ade": "ade20k", "coco-object": "coco_object"}


def _case(reference: Path, case_id: str) -> tuple[dict, dict[str, np.ndarray]]:
    cases = json.loads((reference / "numerics" / "cases.json").read_text())["cases"]
    found = [case for case in cases if case["id"] == case_id]
    if not found:
        pytest.skip(f"the reference has no case {case_id}")
    return found[0], load_file(reference / "numerics" / found[0]["file"])


@pytest.mark.parametrize("upstream_name", ["city", "voc", "ade", "context", "coco-stuff"])
def test_labels_equal_the_released_code(reference: Path, build: Build, upstream_name: str) -> None:
    case, tensors = _case(reference, f"labels/{upstream_name}")
    options = {"shift": True} if upstream_name == "coco-stuff" else {}
    dataset = build(NAMES.get(upstream_name, upstream_name), protocol="upstream", **options)
    label = dataset.to_classes(tensors["inputs/raw"].astype(np.int64), "case")
    assert np.array_equal(label, tensors["expected/label"])
    assert len(dataset.classes) == case["class_count"]
    if "existent_objects_gt" in case:
        assert list(present_classes(label)) == case["existent_objects_gt"]


def _coco_object(build: Build, case: dict, raw: np.ndarray) -> np.ndarray:
    dataset = build("coco_object", protocol="upstream")
    dataset.segments = {"case": {segment["id"]: segment["category_id"] for segment in case["options"]["segments"]}}
    return dataset.to_classes(dataset.categories(raw, "case"), "case")


def test_panoptic_segments_equal_the_released_code(reference: Path, build: Build) -> None:
    case, tensors = _case(reference, "labels/coco-object")
    label = _coco_object(build, case, tensors["inputs/raw"])
    assert np.array_equal(label, tensors["expected/label"])
    assert list(present_classes(label)) == case["existent_objects_gt"]


def test_a_segment_id_below_81_does_not_collide(reference: Path, build: Build) -> None:
    case, tensors = _case(reference, "labels/coco-object_id_collision")
    raw, expected = tensors["inputs/raw"], tensors["expected/label"]
    label = _coco_object(build, case, raw)
    different = label != expected
    dog = case["options"]["segments"][0]["id"]
    assert np.array_equal(different, raw == dog)  # upstream turns the dog (17) into segment 17, which is a person
    assert set(label[different]) == {17}
    assert set(expected[different]) == {1}


def test_the_default_of_coco_stuff_differs_from_the_released_code_by_the_shift_alone(reference: Path, build: Build) -> None:
    _, tensors = _case(reference, "labels/coco-stuff")
    raw = tensors["inputs/raw"].astype(np.int64)
    dataset = build("coco_stuff", protocol="upstream")
    previous = np.where((raw == 0) | (raw == 255), 255, raw - 1)
    assert np.array_equal(dataset.to_classes(previous, "case"), tensors["expected/label"])
