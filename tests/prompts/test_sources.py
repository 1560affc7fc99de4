"""Sources that need no model: oracle, vocabulary, files and folders, and what they say about bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from goca.data.base import Sample
from goca.data.classes import ClassTable
from goca.data.protocol import Protocol
from goca.data.scenes import Scenes
from goca.errors import ConfigError, DataError
from goca.prompts import Classes, Folder, Published, TextSegment, Vocabulary

Axes = dict[str, tuple[TextSegment, ...]]
VOC = ClassTable.load("voc")
CAT, DOG = VOC.id_of("cat")[0], VOC.id_of("dog")[0]


def sample(image_id: str = "2007_000001", present: tuple[int, ...] = (CAT, DOG), labelled: bool = True) -> Sample:
    return Sample(image_id, np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8) if labelled else None, present)


def scenes(count: int = 3) -> Scenes:
    dataset = Scenes(protocol=Protocol("standard", "ignore", "skip", "classes"), count=count)
    dataset.setup()
    return dataset


def published(tmp_path: Path, content: Any, **options: Any) -> Published:
    path = tmp_path / "captions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return Published(path=path, **options)


def test_classes_of_the_label(text_axes: Axes) -> None:
    (prompt,) = Classes(background_token=True)(sample(), VOC, text_axes["clip"])
    assert prompt.text == "cat, dog, background"
    assert prompt.class_tokens == {CAT: (1,), DOG: (3,)}
    assert Classes()(sample(present=()), VOC, text_axes["clip"]) == ()
    with pytest.raises(DataError, match=r"2007_000001.*no label"):
        Classes()(sample(labelled=False), VOC, text_axes["clip"])
    assert Classes().describe() == {"source": "classes", "ground_truth": True, "background_token": False}


def test_classes_can_name_all_of_them_as_the_vocabulary_does(text_axes: Axes) -> None:
    every = Classes(names="all", background_token=True)
    assert every(sample(), VOC, text_axes["clip"]) == Vocabulary(background_token=True)(sample(), VOC, text_axes["clip"])
    assert every(sample(labelled=False), VOC, text_axes["clip"])
    assert every.describe() == Vocabulary(background_token=True).describe()


@pytest.mark.parametrize("dataset", ["voc", "context", "ade20k", "coco_object", "coco_stuff", "cityscapes"])
@pytest.mark.parametrize("family", ["clip", "bert+t5"])
def test_vocabulary_names_every_class_once(text_axes: Axes, dataset: str, family: str) -> None:
    table = ClassTable.load(dataset)  # type: ignore[arg-type]
    prompts = Vocabulary(background_token=True)(None, table, text_axes[family])
    named = [i for prompt in prompts for i in prompt.class_tokens]
    assert named == [i for i, synonyms in enumerate(table.synonyms) if synonyms]
    assert not any(prompt.warnings for prompt in prompts)


def test_vocabulary_is_cut_into_even_prompts(text_axes: Axes) -> None:
    short = (TextSegment(text_axes["clip"][0].tokenizer, 7),)  # "cat, dog, car" and two special tokens
    prompts = Vocabulary()(None, ClassTable.from_names(["cat", "dog", "car", "bus"]), short)
    assert [prompt.text for prompt in prompts] == ["cat, dog", "car, bus"]


def test_vocabulary_of_a_user(text_axes: Axes) -> None:
    source = Vocabulary(words=("Kitten", "dog", "cat"))
    (prompt,) = source(None, VOC, text_axes["clip"])
    assert list(prompt.class_tokens) == [CAT, DOG]
    with pytest.raises(ConfigError, match="'unicorn' is not a class of this data set, which has aeroplane"):
        Vocabulary(words=("cat", "unicorn")).setup(type("Data", (), {"classes": VOC})())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dataset", "word", "text"), [("ade20k", "screen", "screen"), ("coco_stuff171", "wall-brick", "brick wall")]
)
def test_vocabulary_takes_a_class_by_its_own_name(text_axes: Axes, dataset: str, word: str, text: str) -> None:
    """Another class may have it among its words, or none may."""
    table = ClassTable.load(dataset)
    (prompt,) = Vocabulary(words=(word,), background_words=False)(None, table, text_axes["clip"])
    assert list(prompt.class_tokens) == [table.names.index(word)]
    assert prompt.text == text


def test_word_without_a_token(text_axes: Axes) -> None:
    with pytest.raises(ConfigError, match="no usable token for '☃'"):
        Vocabulary()(None, ClassTable.from_names(["cat", "☃"]), text_axes["bert"])


def test_published_filters(tmp_path: Path, text_axes: Axes) -> None:
    captions = {"2007_000001.jpg": {"caption": "(Cat, toy), sofa, grass."}}
    plain = published(tmp_path, captions)
    (prompt,) = plain(sample(), VOC, text_axes["clip"])
    assert list(prompt.class_tokens) == [CAT, *VOC.id_of("sofa")]
    upstream = published(tmp_path, captions, ground_truth=True, add_missing=True, background_token=True)
    (prompt,) = upstream(sample(), VOC, text_axes["clip"])
    assert prompt.text == "cat, toy, sofa, grass, background, dog"
    assert list(prompt.class_tokens) == [CAT, DOG]
    assert upstream.describe() == {
        "source": "published",
        "path": str(tmp_path / "captions.json"),
        "on_missing": "error",
        "ground_truth": True,
        "add_missing": True,
        "background_token": True,
        "classes_first": False,
        "tidy": False,
    }


def test_ambiguous_synonyms_take_the_lowest_class_that_is_there(tmp_path: Path, text_axes: Axes) -> None:
    table = ClassTable.load("ade20k", "upstream")
    ids = table.id_of("screen")
    assert len(ids) > 1
    source = published(tmp_path, {"2007_000001.jpg": {"caption": "screen"}}, ground_truth=True)
    (prompt,) = source(sample(present=ids[1:]), table, text_axes["clip"])
    assert list(prompt.class_tokens) == [ids[1]]


def test_images_without_a_caption(tmp_path: Path, text_axes: Axes) -> None:
    dataset = scenes(3)
    captions = {f"{dataset.image_ids[0]}.png": {"caption": "cat"}}
    with pytest.raises(DataError, match=rf"no caption for 2 of 3 images \({dataset.image_ids[1]}, {dataset.image_ids[2]}\)"):
        published(tmp_path, captions).setup(dataset)
    published(tmp_path, captions).setup(dataset, dataset.image_ids[:1])
    for on_missing, expected in (("classes", ["cat, dog"]), ("skip", [])):
        source = published(tmp_path, captions, on_missing=on_missing)
        source.setup(dataset)
        assert [prompt.text for prompt in source(sample("absent"), VOC, text_axes["clip"])] == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a.jpg": {"caption": "cat"},\n "b.jpg" {"caption": "dog"}}', "line 2, column 10: not valid JSON"),
        ('{"a.jpg": {"caption": "cat"}, "a.jpg": {"caption": "dog"}}', "'a.jpg' occurs twice"),
        ('{"a.jpg": "cat"}', "entry 'a.jpg': expected an image name and a \"caption\""),
        ('{"a.jpg": {"caption": 3}}', "caption"),
        ('["cat"]', "expected an object"),
        ("", "line 1"),
    ],
)
def test_malformed_files(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        published(tmp_path, content).setup(scenes(1))


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json: no such file"):
        Published(path=tmp_path / "nowhere.json").setup(scenes(1))
    (tmp_path / "latin.json").write_bytes('{"a.jpg": {"caption": "café"}}'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        Published(path=tmp_path / "latin.json").setup(scenes(1))


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    rows = [{"image_id": "a", "caption": "cat"}, {"image_id": "b", "caption": None}, {"image_id": "b", "caption": "dog"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"image_id": "c", "capt')
    assert Published(path=path).captions == {"a": "cat", "b": "dog"}
    path.write_text('{"image_id": "a", "caption": "cat"}\n{"image_id": "b" "caption": "dog"}\n')
    with pytest.raises(DataError, match="line 2"):
        _ = Published(path=path).captions


def test_folder(tmp_path: Path, text_axes: Axes) -> None:
    (tmp_path / "2007_000001.txt").write_text("Cat , grass.\n")
    source = Folder(path=tmp_path)
    (prompt,) = source(sample(), VOC, text_axes["clip"])
    assert prompt.text == "cat, grass"
    with pytest.raises(DataError, match="is not a folder"):
        Folder(path=tmp_path / "nowhere").setup(scenes(1))
    with pytest.raises(DataError, match=r"no \*\.caption file"):
        Folder(path=tmp_path, extension=".caption").setup(scenes(1))


@pytest.mark.parametrize("name", ["voc", "context", "coco-object", "coco-stuff", "city", "ade"])
def test_published_files_of_the_authors_are_read(shared: Path, name: str) -> None:
    captions = Published(path=shared / "captions" / f"{name}.json").captions
    assert len(captions) in (1464, 964, 5000, 500, 2000)
    assert not any(key.endswith((".jpg", ".png", "leftImg8bit")) for key in captions)
