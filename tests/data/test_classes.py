"""The class tables: complete, unambiguous where corrected, and equal to the released tables where asked."""

import json
from pathlib import Path

import numpy as np
import pytest

from goca.data.classes import ClassTable
from goca.data.colours import distinct_colours, oklab
from goca.errors import ConfigError

COUNTS = {
    "voc": 21,
    "context": 60,
    "coco_object": 81,
    "coco_stuff": 28,
    "coco_stuff27": 28,
    "coco_stuff171": 172,
    "cityscapes": 20,
    "ade20k": 151,
    "scenes": 15,
}
UPSTREAM = {"voc": "voc", "context": "context", "coco-object": "coco_object", "coco-stuff": "coco_stuff"}
UPSTREAM |= {"city": "cityscapes", "ade": "ade20k"}
# Words that stand for several classes in the data set itself: ADE20K uses them in the official names of both.
AMBIGUOUS = {"ade20k": {"ground", "counter", "screen"}}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
@pytest.mark.parametrize("synonyms", ["corrected", "upstream"])
def test_tables_are_complete(name: str, count: int, synonyms: str) -> None:
    table = ClassTable.load(name, synonyms)
    assert len(table) == len(table.synonyms) == len(table.colours) == len(table.things) == count
    assert table.names[0] == "background"
    assert table.synonyms[0] == ()
    assert len(set(table.names)) == count
    assert len(set(table.colours)) == count
    for words in table.synonyms:
        assert len(set(words)) == len(words)
        assert all(word == word.lower().strip() and word for word in words)


@pytest.mark.parametrize("name", COUNTS)
def test_corrected_words_mean_one_class(name: str) -> None:
    table = ClassTable.load(name)
    words = {word for words in table.synonyms for word in words}
    assert {word for word in words if len(table.id_of(word)) > 1} == AMBIGUOUS.get(name, set())
    merged = {15, 16} if name == "coco_stuff" else set()
    assert {i for i, words in enumerate(table.synonyms) if not words} == {0, *merged}


@pytest.mark.parametrize(("upstream", "name"), UPSTREAM.items())
def test_the_upstream_words_are_the_released_ones(shared: Path, upstream: str, name: str) -> None:
    released = json.loads((shared / "tables" / f"{upstream}.json").read_text())["caption_classes"]
    assert [list(words) for words in ClassTable.load(name, "upstream").synonyms] == released


@pytest.mark.parametrize(
    ("name", "word", "upstream", "corrected"),
    [
        ("ade20k", "buildings", (), "building"),
        ("ade20k", "edifice", (), "building"),
        ("ade20k", "houses", (), "house"),
        ("voc", "skyline", (1,), None),
        ("voc", "wine", (5,), None),
        ("voc", "truck", (7,), None),
        ("voc", "woodpecker", (15,), "bird"),
        ("voc", "potted plant", (), "pottedplant"),
        ("voc", "dining table", (), "diningtable"),
        ("cityscapes", "person", (), "person"),
        ("cityscapes", "people", (), "person"),
        ("coco_stuff", "food", (3, 15), "food"),
        ("coco_stuff", "clothes", (), None),  # worn ones are labelled as the person
        ("coco_stuff", "hat", (), None),  # of a category that no mask holds, as are the next
        ("coco_stuff27", "plate", (), None),
        ("coco_stuff27", "fruit", (), "food-stuff"),
        ("ade20k", "ground", (14, 95), ("earth", "land")),
    ],
)
def test_slips_of_the_released_tables(name: str, word: str, upstream: tuple[int, ...], corrected) -> None:
    assert ClassTable.load(name, "upstream").id_of(word) == upstream
    table = ClassTable.load(name)
    names = (corrected,) if isinstance(corrected, str) else corrected or ()
    assert tuple(table.names[i] for i in table.id_of(word)) == names


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("synonyms", ["corrected", "upstream"])
def test_every_class_is_found_by_its_own_name(name: str, synonyms: str) -> None:
    table = ClassTable.load(name, synonyms)
    asked = [i for i in range(len(table)) if table.words(i)]
    assert [table.class_named(table.names[i]) for i in asked] == asked
    assert [table.class_named(f" {table.names[i].upper()} ") for i in asked] == asked
    without = [table.names[i] for i in range(len(table)) if i not in asked]  # the background, and what is merged into others
    assert {table.class_named(word) for word in without} <= {None}


@pytest.mark.parametrize("name", COUNTS)
def test_a_word_that_is_no_name_means_the_class_that_has_it(name: str) -> None:
    table = ClassTable.load(name)
    named = {table.names[i].lower() for i in range(len(table)) if table.words(i)}
    words = {word for words in table.synonyms for word in words} - named
    assert {table.class_named(word) for word in words} <= set(range(1, len(table)))
    assert all(table.class_named(word) == table.id_of(word)[0] for word in words)
    assert table.class_named("no such word") is None


def test_a_name_goes_before_the_same_word_of_another_class() -> None:
    """ADE20K's screen door is a "screen" too, and comes first."""
    table = ClassTable.load("ade20k")
    assert table.id_of("screen")[0] == table.names.index("screen door") < 131
    assert table.class_named("screen") == 131
    assert ClassTable.load("coco_stuff171").class_named("wall-brick") == 160  # no word says so


def test_official_palettes() -> None:
    assert ClassTable.load("voc").colours[15] == (192, 128, 128)
    assert ClassTable.load("cityscapes").colours[1] == (128, 64, 128)
    assert ClassTable.load("coco_object").colours[1] == (220, 20, 60)


def test_generated_colours_stay_apart() -> None:
    lab = oklab(np.array([(0, 0, 0), *distinct_colours(150)]))
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + np.eye(len(lab))
    assert distances.min() > 0.05  # about twice what a person just notices


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "empty"), (["cat", " "], "class 2"), (["cat, "], "class 1"), (["cat", "dog, cat"], "two classes: cat")],
)
def test_bad_class_lists_are_named(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClassTable.from_names(names)


def test_unknown_tables_are_named() -> None:
    with pytest.raises(ConfigError, match=r"tables: ade20k, .*voc"):
        ClassTable.load("imagenet")
    with pytest.raises(ConfigError, match="'corrected' or 'upstream'"):
        ClassTable.load("voc", "both")  # type: ignore[arg-type]
