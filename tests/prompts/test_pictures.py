"""Answers belong to pictures: a file of answers that meets other pictures of the same names is refused, asking and reading."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from goca import caption, config
from goca.data.base import SegmentationDataset
from goca.data.protocol import Protocol
from goca.data.scenes import Scenes
from goca.errors import ConfigError
from goca.prompts import Published, TextSegment
from goca.prompts.answers import Answer, Status
from goca.prompts.asked import Asked, ask_all
from goca.prompts.pictures import picture_hash
from goca.prompts.predicted import Predicted
from goca.runs.evaluation import evaluate
from goca.scenes.tokenizer import small_clip_tokenizer
from tests.data.conftest import build_dataset

OTHER = r"c\.jsonl: what it holds for image '{}' was said of another picture of this name.*prompts\.path=\.\.\."
SEGMENTS = (TextSegment(small_clip_tokenizer(["cat"]), 77),)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Network(Asked):
    """Says `cat` of everything, or nothing where it refuses; `asked` is what it was shown."""

    refuses: bool = False

    def load(self) -> None:
        self.asked.clear()

    def ask(self, image: np.ndarray, request: str) -> Answer:
        self.asked.append(image)
        return Answer(None, "refused") if self.refuses else Answer("cat")

    def is_settled(self, status: Status) -> bool:
        return status == "ok"

    @property
    def asked(self) -> list[np.ndarray]:
        return self.__dict__.setdefault("_asked", [])


def network(path: Path, **options: Any) -> Network:
    return Network(path=path / "c.jsonl", model="net", instruction="name {classes}", **options)


def folder(root: Path, pictures: Sequence[int], ending: str = "png") -> SegmentationDataset:
    """Pictures a, b, c ... of noise, one of each seed."""
    (root / "images").mkdir(parents=True)
    for name, seed in zip("abcdefg", pictures, strict=False):
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{name}.{ending}")
    (root / "classes.txt").write_text("cat\n")
    dataset = build_dataset("folder", root)
    dataset.setup()
    return dataset


def ask(source: Asked, dataset: SegmentationDataset) -> dict[str, str]:
    return ask_all(source, dataset, range(len(dataset)))


def test_an_answer_says_which_picture_it_is_of(tmp_path: Path) -> None:
    dataset = folder(tmp_path / "one", (0, 1))
    assert ask(network(tmp_path), dataset) == {}
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [row["picture_hash"] for row in rows] == [picture_hash(sample.image) for sample in dataset]
    again = network(tmp_path)
    assert ask(again, folder(tmp_path / "moved", (0, 1), "bmp")) == {}  # the same pixels in other files
    assert again.asked == []
    again.setup(dataset)
    assert [len(again(sample, dataset.classes, SEGMENTS)) for sample in dataset] == [1, 1]


def test_nothing_is_asked_about_a_folder_whose_names_were_answered_for_another(tmp_path: Path) -> None:
    ask(network(tmp_path), folder(tmp_path / "one", (0, 1)))
    before, source = (tmp_path / "c.jsonl").read_text(), network(tmp_path)
    other = folder(tmp_path / "other", (2, 3, 4))
    with pytest.raises(ConfigError, match=OTHER.format("a")):
        ask(source, other)
    assert source.asked == []
    assert (tmp_path / "c.jsonl").read_text() == before


def test_folders_without_a_common_name_share_a_file(tmp_path: Path) -> None:
    ask(network(tmp_path), folder(tmp_path / "one", (0,)))
    folder(tmp_path / "other", (2,))
    (tmp_path / "other" / "images" / "a.png").rename(tmp_path / "other" / "images" / "z.png")
    other = build_dataset("folder", tmp_path / "other")
    source = network(tmp_path)
    assert ask(source, other) == {}
    assert len(source.asked) == 1
    source.setup(other)


def test_what_was_refused_of_one_picture_is_not_asked_again_of_another(tmp_path: Path) -> None:
    ask(network(tmp_path, refuses=True), folder(tmp_path / "one", (0, 1)))
    source = network(tmp_path)
    with pytest.raises(ConfigError, match=OTHER.format("b")):
        ask(source, folder(tmp_path / "other", (0, 3)))
    assert len(source.asked) == 1  # a, which is the same picture


def sources(path: Path) -> dict[str, Any]:
    """All kinds of sources that read such a file."""
    return {
        "asked": network(path.parent),
        "published": Published(path=path, ground_truth=False),
        "predicted": Predicted(path=path, model=None),
        "in own words": Predicted(path=path, model="net", kind="vlm"),
    }


@pytest.mark.parametrize("kind", sources(Path("c.jsonl")))
def test_reading_compares_every_picture(tmp_path: Path, kind: str) -> None:
    ask(network(tmp_path), folder(tmp_path / "one", (0, 1, 2)))
    same, first, last = (
        folder(tmp_path / name, seeds) for name, seeds in (("s", (0, 1, 2)), ("f", (9, 1, 2)), ("l", (0, 1, 9)))
    )
    source = sources(tmp_path / "c.jsonl")[kind]
    source.setup(same)
    assert all(source(sample, same.classes, SEGMENTS) for sample in same)
    with pytest.raises(ConfigError, match=OTHER.format("a")):  # before a model is loaded
        source.setup(first)
    source.setup(last)
    assert source(last[1], last.classes, SEGMENTS)
    with pytest.raises(ConfigError, match=OTHER.format("c")):
        source(last[2], last.classes, SEGMENTS)


@pytest.mark.parametrize("kind", sources(Path("c.jsonl")))
def test_lines_of_earlier_versions_are_taken_as_they_are(tmp_path: Path, kind: str) -> None:
    ask(network(tmp_path), folder(tmp_path / "one", (0, 1)))
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    lines = [json.dumps({key: value for key, value in row.items() if key != "picture_hash"}) + "\n" for row in rows]
    (tmp_path / "c.jsonl").write_text("".join(lines))
    other = folder(tmp_path / "other", (2, 3, 4))
    source = sources(tmp_path / "c.jsonl")[kind]
    source.setup(other, other.image_ids[:2])
    assert all(source(other[place], other.classes, SEGMENTS) for place in range(2))
    more = network(tmp_path)
    assert ask(more, other) == {}
    assert len(more.asked) == 1


@pytest.mark.parametrize("options", [{"colours": "random"}, {"look": "camouflage"}, {"size": 48}])
def test_scenes_of_another_kind_are_other_pictures(tmp_path: Path, options: dict[str, Any]) -> None:
    protocol = Protocol("standard", "ignore", "skip", "classes")
    plain, other = Scenes(protocol=protocol, count=2), Scenes(protocol=protocol, count=2, **options)
    other.setup()
    ask(network(tmp_path), plain)
    source = network(tmp_path)
    source.setup(plain)
    with pytest.raises(ConfigError, match=OTHER.format(plain.image_ids[0])):
        source.setup(other)
    for sample in other:
        with pytest.raises(ConfigError, match=OTHER.format(sample.image_id)):
            source(sample, other.classes, SEGMENTS)


def _scenes_file(path: Path, changed: int) -> Path:
    """Names of four scenes as `goca.caption` writes them, of which one was given for another picture."""
    dataset = Scenes(protocol=Protocol("standard", "ignore", "skip", "classes"), count=4)
    rows = [{"image_id": s.image_id, "caption": s.caption, "picture_hash": picture_hash(s.image)} for s in dataset]
    rows[changed]["picture_hash"] = "0" * 12
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_run_ends_at_a_picture_that_its_words_are_not_of(tiny: list[str], tmp_path: Path) -> None:
    """It would be one failure among images that have a number; the file is wrong, not the image."""
    path = _scenes_file(tmp_path / "c.jsonl", changed=3)
    options = ["prompts=published", "prompts.ground_truth=false", f"prompts.path={path}", "limit=4"]
    with pytest.raises(ConfigError, match="was said of another picture"):
        evaluate(config.compose([*tiny, *options]), tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("inspect", [0, 4])
def test_counting_captions_compares_pictures_too(tmp_path: Path, inspect: int) -> None:
    small_clip_tokenizer().save_pretrained(tmp_path / "model" / "tokenizer")
    path = _scenes_file(tmp_path / "c.jsonl", changed=2)
    overrides = ["prompts=published", f"prompts.path={path}", "dataset.count=4", f"inspect={inspect}"]
    cfg = config.compose([*overrides, f"model.checkpoint={tmp_path / 'model'}"], "caption")
    with pytest.raises(ConfigError, match="was said of another picture"):
        caption.run(cfg, tmp_path / "out")
