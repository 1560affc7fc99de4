"""Masks as editors and optimisers store them: the ids that were meant, or one message that says what the file is."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from goca.data.base import IGNORE, NOTHING_SCORED
from goca.data.class_lists import ClassList
from goca.data.classes import ClassTable
from goca.data.label_maps import UNKNOWN, identity_map
from goca.data.masks import read_indices, voc_palette
from goca.errors import ConfigError, DataError
from tests.data.conftest import Build, build_dataset
from tests.helpers.png import write_png

GREYS = tuple((level, level, level) for level in range(256))


@st.composite
def _optimised(draw: Callable) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int, int]], int]:
    """Ids of a data set with 21 classes, and what a lossless optimiser makes of them: samples, palette, depth."""
    colours = draw(st.sampled_from((voc_palette(), GREYS)))
    present = draw(st.lists(st.sampled_from([*range(21), 255]), min_size=1, max_size=16, unique=True))
    order = draw(st.permutations(present))
    ids = np.array(present)[np.random.default_rng(draw(st.integers(0, 99))).integers(0, len(present), (3, 5))]
    samples = np.array([order.index(value) for value in ids.flat]).reshape(ids.shape)
    depth = next(depth for depth in (1, 2, 4, 8) if len(order) <= 2**depth)
    return ids, samples, [colours[value] for value in order], draw(st.sampled_from((depth, 8)))


@settings(deadline=None)
@given(_optimised())
def test_a_reordered_palette_changes_no_id(tmp_path_factory: Any, case: tuple) -> None:
    ids, samples, palette, depth = case
    path = write_png(tmp_path_factory.getbasetemp() / "mask.png", samples, depth, 3, np.array(palette, np.uint8).tobytes())
    known = identity_map(21) != UNKNOWN
    assert np.array_equal(read_indices(path, palettes=(voc_palette(),), known=known), ids)


@settings(deadline=None)
@given(st.sampled_from((2, 4)), st.integers(0, 99))
def test_grey_of_fewer_bits_keeps_its_levels(tmp_path_factory: Any, depth: int, seed: int) -> None:
    """What an optimiser may do losslessly: 85 in 8 bits is 5 in 4 bits, and 1 in 2 bits."""
    samples = np.random.default_rng(seed).integers(0, 2**depth, (3, 5))
    path = write_png(tmp_path_factory.getbasetemp() / "grey.png", samples, depth, 0)
    assert np.array_equal(read_indices(path), samples * (255 // (2**depth - 1)))


@pytest.mark.parametrize("protocol", ["standard", "upstream"])
@pytest.mark.parametrize("classes", [2, 90])
@pytest.mark.parametrize("depth", [2, 4])
def test_grey_of_fewer_bits_that_may_be_ids_is_refused(tmp_path: Path, depth: int, classes: int, protocol: str) -> None:
    """A program that saves bits means 1 by the 1 that an optimiser writes for 85 or 17."""
    names = "".join(f"n{number}n\n" for number in range(classes))
    root = _folder(tmp_path, np.zeros((1, 3)), classes=names)
    write_png(root / "masks" / "0.png", np.array([[0, 1, 2]]), depth, 0)
    message = rf"0\.png stores {depth} bits a pixel, which may be class ids \(2 at most\) or grey levels.*with 8 bits"
    with pytest.raises(DataError, match=message) as caught:
        build_dataset("folder", root, protocol)[0]
    assert "\n" not in str(caught.value)


def test_grey_of_fewer_bits_that_can_be_no_ids_keeps_its_levels(tmp_path: Path) -> None:
    """Void (255) is 15 in four bits and 3 in two; where there are fewer classes it is nothing else. Zero is zero either way."""
    root = _folder(tmp_path, np.zeros((1, 2)), classes="cat\n")
    for depth, samples in ((2, [[0, 3]]), (4, [[0, 15]]), (4, [[0, 0]])):
        path = write_png(root / "masks" / "0.png", np.array(samples), depth, 0)
        assert np.array_equal(read_indices(path, known=identity_map(1) != UNKNOWN), np.array(samples) * (255 // (2**depth - 1)))


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=2, max_size=8, unique=True), st.integers(0, 99))
def test_a_palette_of_ones_own_is_refused_unless_its_order_is_vouched_for(
    tmp_path_factory: Any, palette: list[tuple[int, int, int]], seed: int
) -> None:
    samples = np.random.default_rng(seed).integers(0, len(palette), (3, 5))
    path = write_png(tmp_path_factory.getbasetemp() / "own.png", samples, 8, 3, np.array(palette, np.uint8).tobytes())
    assert np.array_equal(read_indices(path, by_index=True), samples)
    used = [palette[value] for value in np.unique(samples)]
    if all(colour in voc_palette() for colour in used) or all(colour in GREYS for colour in used):
        return
    with pytest.raises(DataError, match=r"own\.png is neither grey nor official \(it has the colour .*dataset\.palette=index"):
        read_indices(path, palettes=(voc_palette(),))


def test_colours_that_mean_two_things_are_refused(tmp_path: Path) -> None:
    """Grey 128 is the VOC palette's 7; with more than 128 classes it can be either."""
    path = write_png(tmp_path / "two.png", np.array([[0, 1]]), 8, 3, bytes([0, 0, 0, 128, 128, 128]))
    assert read_indices(path, palettes=(voc_palette(),), known=np.arange(256) < 100).tolist() == [[0, 7]]
    with pytest.raises(DataError, match="can be read in two ways"):
        read_indices(path, palettes=(voc_palette(),))


def _mask_file(path: Path, kind: str) -> None:
    values = np.array([[1, 2, 255], [0, 1, 2]], np.uint8)
    picture = Image.fromarray(values)
    exif = Image.Exif()
    exif[0x0112] = 3
    match kind:
        case "jpeg":
            picture.save(path, "JPEG", quality=100)
        case "jpeg in tiff":
            picture.save(path, "TIFF", compression="jpeg")
        case "colour":
            picture.convert("RGB").save(path)
        case "float":
            Image.fromarray(values.astype(np.float32)).save(path, "TIFF")
        case "turned":
            picture.save(path, exif=exif)
        case "one bit":
            Image.fromarray(values > 0).save(path)
        case "alpha":
            Image.merge("LA", (picture, Image.fromarray(values))).save(path)
        case "opaque":
            Image.merge("LA", (picture, Image.new("L", picture.size, 255))).save(path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("jpeg", "is a JPEG picture, whose compression changes class ids"),
        ("jpeg in tiff", "is a JPEG picture"),
        ("colour", r"colour picture \(mode RGB\)"),
        ("float", r"mode F"),
        ("turned", "EXIF tag that turns it"),
        ("one bit", "stores one bit a pixel"),
        ("alpha", r"mode LA"),
    ],
)
def test_masks_that_cannot_hold_ids_are_refused_for_what_they_are(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "mask.png"
    _mask_file(path, kind)
    with pytest.raises(DataError, match=rf"mask\.png.*{message}") as caught:
        read_indices(path, known=identity_map(3) != UNKNOWN)
    assert "\n" not in str(caught.value)


def test_an_opaque_channel_says_nothing(tmp_path: Path) -> None:
    _mask_file(tmp_path / "mask.png", "opaque")
    assert read_indices(tmp_path / "mask.png").tolist() == [[1, 2, 255], [0, 1, 2]]


# -------------------------------------------------------------------------------------------------------- in a data set
def _folder(root: Path, *masks: np.ndarray | Image.Image, classes: str = "cat\ngrass\n") -> Path:
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for number, mask in enumerate(masks):
        picture = mask if isinstance(mask, Image.Image) else Image.fromarray(mask.astype(np.uint8))
        Image.new("RGB", picture.size).save(root / "images" / f"{number}.png")
        picture.save(root / "masks" / f"{number}.png")
    (root / "classes.txt").write_text(classes, encoding="utf-8")
    return root


def test_predictions_can_be_masks(tmp_path: Path) -> None:
    """Label maps that a run saves have the colours of its classes as their palette."""
    ids = np.array([[0, 1, 2, 2]])
    picture = Image.fromarray(ids.astype(np.uint8), "P")
    picture.putpalette([channel for colour in ClassTable.from_names(["cat", "grass"]).colours for channel in colour])
    assert build_dataset("folder", _folder(tmp_path, picture))[0].label.tolist() == [[IGNORE, 1, 2, 2]]


def test_binary_masks_are_said_to_be_binary(tmp_path: Path, build: Build) -> None:
    binary = np.array([[0, 255], [255, 0]])
    with pytest.raises(DataError, match=r"hold only 0 and 255.*write 1 where cat is"):
        build("folder", _folder(tmp_path / "all", binary, binary)).setup()
    mixed = build("folder", _folder(tmp_path / "one", binary, np.array([[1, 2]])))
    assert [sample.notes for sample in mixed] == [(NOTHING_SCORED,), ()]
    bits = Image.fromarray(binary > 0)
    assert build("folder", _folder(tmp_path / "bits", bits, classes="cat"))[0].label.tolist() == [[IGNORE, 1], [1, IGNORE]]


@pytest.mark.parametrize("protocol", ["standard", "upstream"])
@pytest.mark.parametrize(("name", "cause"), [("ade20k", "reduce_zero_label"), ("cityscapes", "trainIds")])
def test_255_where_it_cannot_be_is_refused_with_the_cause(tmp_path: Path, name: str, cause: str, protocol: str) -> None:
    if name == "ade20k":
        base = tmp_path / "ADEChallengeData2016"
        image, mask = base / "images" / "validation" / "a.jpg", base / "annotations" / "validation" / "a.png"
    else:
        image = tmp_path / "cityscapes" / "leftImg8bit" / "val" / "bonn" / "bonn_1_2_leftImg8bit.png"
        mask = tmp_path / "cityscapes" / "gtFine" / "val" / "bonn" / "bonn_1_2_gtFine_labelIds.png"
    for path, array in ((image, np.zeros((1, 3, 3))), (mask, np.array([[0, 7, 255]]))):
        path.parent.mkdir(parents=True)
        Image.fromarray(array.astype(np.uint8)).save(path)
    with pytest.raises(DataError, match=f"value 255, which cannot occur in {name}: .*{cause}"):
        build_dataset(name, tmp_path, protocol)[0]


# ----------------------------------------------------------------------------------------------------------- class lists
@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (["cat", "dog, puppy"], ("cat", "dog, puppy")),
        (["background", "cat", "dog"], ("cat", "dog")),
        (["_background_", "cat"], ("cat",)),
        (["__ignore__", "_background_", "cat"], ("cat",)),
        (["Background, bg", "cat"], ("cat",)),
        (["1: cat", "2: dog"], ("cat", "dog")),
        (["0 background", "1 cat", "2 dog"], ("cat", "dog")),
        (["cat,1", "dog,2"], ("cat", "dog")),
        (["  cat ", "", "dog\r"], ("cat", "dog")),
        (["2 euro coin"], ("2 euro coin",)),
        (["area 51", "cat"], ("area 51", "cat")),
    ],
)
def test_class_lists_are_read_as_they_are_meant(lines: list[str], names: tuple[str, ...]) -> None:
    assert ClassList.read(lines, "x").names == names


@pytest.mark.parametrize(
    "lines",
    [
        ["cat", "background"],
        ["__ignore__", "cat"],
        ["void", "cat"],
        ["unlabeled", "cat"],
        ["0: cat", "1: dog"],
        ["1: cat", "3: dog"],
        ["2: cat", "1: dog"],
        ["cat 128", "dog 64"],
    ],
)
def test_class_lists_that_would_shift_ids_are_refused(lines: list[str]) -> None:
    with pytest.raises(ConfigError, match="x "):
        ClassList.read(lines, "x")


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), min_size=1, max_size=6, unique=True), st.booleans())
def test_ids_never_shift(names: list[str], numbered: bool) -> None:
    """However the list is written, the n-th class has the id n, or the list is refused."""
    if {*names} & {"background", "void", "ignore", "unlabeled", "unlabelled"}:
        return
    for first in ([], ["background"], ["_background_"], ["__ignore__", "_background_"]):
        lines = [*first, *names]
        if numbered and len(first) < 2 and len(names) > 1:
            lines = [f"{number} {line}" for number, line in enumerate(lines, start=0 if first else 1)]
        assert ClassTable.from_names(ClassList.read(lines, "x").names).names == ("background", *names)


def test_an_id_beyond_a_list_that_names_background_says_why(tmp_path: Path) -> None:
    dataset = build_dataset("folder", _folder(tmp_path, np.array([[1, 3]]), classes="background\ncat\ngrass\n"))
    with pytest.raises(DataError, match=r"no ids of folder: 3 \(background, named first, is 0: the ids end at 2\)"):
        dataset[0]


def test_a_mask_may_come_in_any_lossless_format(tmp_path: Path) -> None:
    root = _folder(tmp_path, np.array([[1, 2]]))
    buffer = io.BytesIO()
    Image.open(root / "masks" / "0.png").save(buffer, "TIFF")
    (root / "masks" / "0.png").unlink()
    (root / "masks" / "0.TIF").write_bytes(buffer.getvalue())
    assert build_dataset("folder", root)[0].present == (1, 2)
