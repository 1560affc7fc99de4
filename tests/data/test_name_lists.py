"""Lists of class names in the field's format, those that come along and one's own."""

from pathlib import Path

import pytest

from goca.data.classes import ClassTable
from goca.data.name_lists import SHIPPED, parse, worded
from goca.errors import ConfigError
from goca.prompts import TextSegment, Vocabulary
from goca.scenes.tokenizer import small_clip_tokenizer
from tests.data.conftest import Build

TABLES = {"voc": "voc21", "context": "context60", "coco_object": "coco_object", "coco_stuff171": "coco_stuff171",
          "cityscapes": "cityscapes", "ade20k": "ade150"}  # fmt: skip


@pytest.mark.parametrize("names", SHIPPED)
@pytest.mark.parametrize("dataset", TABLES.values())
def test_the_lists_that_come_along_fit_their_classes(build: Build, names: str, dataset: str) -> None:
    table = build(dataset, names=names).classes
    assert len(table.asked) == len(table)
    assert all(table.words(class_id) for class_id in range(1, len(table)))
    assert table.words(0) == ()
    several = {table.names[i] for i in range(len(table)) if len(table.words(i)) > 1}
    expected = {"voc21": {"person", "tvmonitor"}, "coco_object": {"person"}} if names == "sclip" else {}
    assert several == expected.get(dataset, set())


@pytest.mark.parametrize(
    ("dataset", "options", "count"),
    [
        ("voc21", {}, 26), ("voc21", {"names": "sclip"}, 26), ("voc21", {"names": "proxyclip"}, 26),
        ("coco_object", {}, 16), ("coco_object", {"names": "sclip"}, 26), ("coco_object", {"names": "proxyclip"}, 17),
        ("coco_object", {"names": "sclip", "background_words": "corrclip"}, 16), ("context60", {}, 1),
        ("context60", {"names": "sclip"}, 1), ("context60", {"background_words": ["sky", "wall", "sky"]}, 2),
        ("voc20", {}, 0), ("voc20", {"names": "sclip"}, 0), ("cityscapes", {}, 0), ("voc", {}, 26),
        ("voc21", {"background_words": []}, 0),
    ],
)  # fmt: skip
def test_words_of_the_background(build: Build, dataset: str, options: dict, count: int) -> None:
    table = build(dataset, **options).classes
    assert len(table.background_words) == count
    if not options:  # the usual ones mean no class
        assert not any(table.id_of(word) for word in table.background_words)


def test_under_upstream_every_set_has_a_background_and_a_word_for_it(build: Build) -> None:
    assert build("cityscapes", protocol="upstream").classes.background_words == ("background",)
    assert build("cityscapes").classes.background_words == ()


def test_a_list_of_ones_own_in_either_format(tmp_path: Path, build: Build) -> None:
    file = tmp_path / "names.txt"
    names = ClassTable.load("context").names
    lines = ["stuff; rest", *sorted(names[1:])]
    lines[1] = "plane; jet; aeroplane"
    file.write_text("\n".join(lines) + "\n\n")
    table = build("context60", names=str(file)).classes
    assert table.words(names.index("aeroplane")) == ("plane", "jet", "aeroplane")
    assert table.words(names.index("mouse")) == ("mouse",)
    assert table.background_words == ("stuff", "rest")
    assert build("context59", names=str(file)).classes.background_words == ()
    file.write_text("\n".join(lines[1:]).replace("; ", ", "))
    table = build("context60", names=str(file)).classes
    assert table.words(names.index("aeroplane")) == ("plane", "jet", "aeroplane")
    assert table.background_words == ("background",)


@pytest.mark.parametrize(("dataset", "asked"), [("coco_stuff", 25), ("coco_stuff27", 27)])
def test_a_list_asks_for_no_class_that_is_merged_into_another(tmp_path: Path, build: Build, dataset: str, asked: int) -> None:
    """COCO-Stuff's 15 and 16 are in no label of the merged set: what they win, 3 and 4 lose."""
    (tmp_path / "names.txt").write_text("".join(f"word{number}\n" for number in range(1, 28)))
    plain, listed = build(dataset).classes, build(dataset, names=str(tmp_path / "names.txt")).classes
    segments = (TextSegment(small_clip_tokenizer([f"word{number}" for number in range(1, 28)]), 200),)
    (prompt,) = Vocabulary()(None, listed, segments)
    wanted = [class_id for class_id in range(1, 28) if plain.words(class_id)]
    assert len(wanted) == asked
    assert list(prompt.class_tokens) == wanted
    assert prompt.text.split(", ") == [f"word{class_id}" for class_id in wanted]


def test_names_stay_as_they_are(build: Build) -> None:
    """Only what is asked for changes: results are named, and captions matched, by the table."""
    plain, other = build("voc21").classes, build("voc21", names="sclip").classes
    assert (plain.names, plain.synonyms, plain.colours) == (other.names, other.synonyms, other.colours)
    assert plain.words(4) == ("boat",)
    assert other.words(4) == ("ship",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\ndog", "has 2 lines; it should have one for each of the 20 classes"),
        ("\n".join(["a"] * 19 + ["b, "]), "line 20 of .* has no word, or an empty one: 'b,'"),
        ("\n".join(["a"] * 5 + [""] + ["b"] * 14), "line 6 of"),
        (
            "\n".join(["bicycle", "aeroplane", *["a"] * 18]),
            "class 1 of the list is 'bicycle' where 'aeroplane' belongs; .*aeroplane, bicycle",
        ),
    ],
)  # fmt: skip
def test_lists_that_do_not_fit_are_refused(tmp_path: Path, build: Build, text: str, message: str) -> None:
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(ConfigError, match=message):
        _ = build("voc20", names=str(tmp_path / "names.txt")).classes


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("voc21", {"names": "sclp"}, "should be dataset, sclip, proxyclip or a file of names; there is no file sclp"),
        ("coco_stuff27", {"names": "sclip"}, "has no list for coco_stuff27; it has those of ade20k, cityscapes"),
        (
            "voc21",
            {"background_words": "clip"},
            r"such as \[sky,wall\], or one of sclip, proxyclip, corrclip; got 'clip'",
        ),
        ("voc21", {"background_words": ["sky", " "]}, "holds an empty word"),
    ],
)
def test_unknown_lists_are_named(build: Build, dataset: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _ = build(dataset, **options).classes


def test_a_bytewise_broken_file_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ConfigError, match="cannot read the list"):
        worded(ClassTable.from_names(["a"]), "mine", str(tmp_path / "names.txt"))
    assert parse(["a;b;a"], "list", 1).classes == (("a", "b"),)
