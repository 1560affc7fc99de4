"""Names from a zero-shot classifier and a vision-language model, both built here, and from files of predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPProcessor

from experiments.predict_scenes import predictions
from goca import config
from goca.data.base import Sample
from goca.data.classes import ClassTable
from goca.data.protocol import Protocol
from goca.data.scenes import Scenes
from goca.errors import ConfigError, DataError, ModelError
from goca.prompts import TextSegment
from goca.prompts.asked import ask_all
from goca.prompts.predicted import Predicted, word_of
from goca.runs.evaluation import evaluate
from goca.scenes.tokenizer import small_clip_tokenizer
from tests.helpers.tiny_clip import tiny_clip
from tests.helpers.vocabularies import letter_t5_tokenizer

TABLES = ("voc", "context", "coco_object", "coco_stuff171", "cityscapes", "ade20k")


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of a few thousand parameters that knows the words of the scenes."""
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    dataset = Scenes(protocol=Protocol("ovss", "ignore", "skip", "vocabulary"), count=3)
    dataset.setup()
    return dataset


@pytest.fixture(scope="module")
def segments() -> tuple[TextSegment, ...]:
    return (TextSegment(small_clip_tokenizer(), 77),)


def write(path: Path, content: Any) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in content) if path.suffix == ".jsonl" else json.dumps(content)
    path.write_text(lines, encoding="utf-8")
    return path


def named(source: Predicted, dataset: Scenes, segments: Any) -> list[set[str]]:
    """The classes that the prompts of each image name."""
    samples = [dataset[position] for position in range(len(dataset))]
    prompts = [source(sample, dataset.classes, segments) for sample in samples]
    return [{dataset.classes.names[i] for prompt in found for i in prompt.class_tokens} for found in prompts]


def test_a_classifier_s_scores_are_kept_and_those_near_the_best_are_taken(
    clip_model: Path, scenes: Scenes, segments: Any, tmp_path: Path
) -> None:
    path = tmp_path / "p.jsonl"
    source = Predicted(path=path, model=str(clip_model), device="cpu", share=0.9)
    with pytest.raises(DataError, match=r"run `python -m goca\.caption` with the same options first"):
        source.setup(scenes)
    assert ask_all(source, scenes, range(3)) == {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["image_id"] for row in rows] == scenes.image_ids
    # What transformers says of the same picture and words without its pipeline.
    model, processor = CLIPModel.from_pretrained(clip_model), CLIPProcessor.from_pretrained(clip_model)
    words = [f"a photo of a {name}." for name in scenes.classes.names[1:]]
    with torch.no_grad():
        shown = processor(text=words, images=[scenes[0].image], return_tensors="pt", padding=True)
        expected = model(**shown).logits_per_image.softmax(-1)[0].numpy()
    scores = rows[0]["scores"]
    np.testing.assert_allclose([scores[name] for name in scenes.classes.names[1:]], expected, atol=1e-4)
    best = {name for name, score in scores.items() if score >= 0.9 * max(scores.values())}
    source.setup(scenes)
    assert named(source, scenes, segments)[0] == best
    # Another selection needs no second look at the images.
    two = Predicted(path=path, model=str(clip_model), device="cpu", share=1.0, least=2)
    assert [len(names) for names in named(two, scenes, segments)] == [2, 2, 2]
    assert ask_all(two, scenes, range(3)) == {}
    assert len(path.read_text().splitlines()) == 3


def test_a_vision_language_model_counts_by_the_classes_it_names(
    vlm_model: Path,
    scenes: Scenes,
    segments: Any,
    tmp_path: Path,
) -> None:
    options = {"kind": "vlm", "model": str(vlm_model), "instruction": "name the nouns of {classes}", "max_new_tokens": 4}
    source = Predicted(path=tmp_path / "p.jsonl", device="cpu", **options)
    assert ask_all(source, scenes, range(3)) == {}
    rows = [json.loads(line) for line in source.path.read_text().splitlines()]
    assert all("scores" not in row for row in rows)
    rows[0] |= {"caption": "The grass, a unicorn, (moon, cheese)", "status": "ok"}
    write(source.path, rows)
    again = Predicted(path=source.path, device="cpu", **options)
    again.setup(scenes)
    assert named(again, scenes, segments)[0] == {"moon"}  # "the grass" is no class, "grass" would be


FORMS: list[Any] = [
    {"{0}": ["moon", "grass"], "{1}": ["star"], "{2}": []},
    {"{0}": {"classes": ["Moon", "grass"]}, "{1}": {"classes": ["star"]}, "{2}.png": {"classes": []}},
    {"{0}": {"moon": 0.5, "grass": 0.4, "star": 0.04}, "{1}": {"scores": {"star": 2, "moon": 0.1}}, "{2}": {}},
]


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_predictions_may_be_lists_or_scores(form: Any, scenes: Scenes, segments: Any, tmp_path: Path) -> None:
    content = {name.format(*scenes.image_ids): said for name, said in form.items()}
    source = Predicted(path=write(tmp_path / "p.json", content), model=None)
    source.setup(scenes)
    assert named(source, scenes, segments) == [{"moon", "grass"}, {"star"}, set()]
    records = [{"image_id": name, **(said if "classes" in said else {"classes": said})} for name, said in content.items()]
    if form is not FORMS[2]:
        lines = Predicted(path=write(tmp_path / "p.jsonl", records), model=None)
        assert named(lines, scenes, segments) == [{"moon", "grass"}, {"star"}, set()]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"{0}": ["unicorn"], "{1}": [], "{2}": []}, "has 'unicorn', which is no class of scenes"),
        ({"{0}": [], "{1}": []}, "has no caption for 1 of 3 images"),
        ({"{0}": [3], "{1}": [], "{2}": []}, "expected a list of class names"),
        ({"{0}": 5, "{1}": [], "{2}": []}, "expected a list of class names"),
        ({"{0}": ["moon"], "{0}.png": ["star"], "{1}": [], "{2}": []}, "occurs twice"),
        (["moon"], "expected an object"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_says_where(content: Any, reason: str, scenes: Scenes, tmp_path: Path) -> None:
    if isinstance(content, dict):
        content = {name.format(*scenes.image_ids): said for name, said in content.items()}
    with pytest.raises(DataError, match=reason):
        Predicted(path=write(tmp_path / "p.json", content), model=None).setup(scenes)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"ground_truth": True}, "takes nothing from the ground truth"),
        ({"template": "a photo"}, "needs a {} where the name"),
        ({"least": 3, "most": 2}, "prompts.most=2 is less than"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Predicted(path=Path("p"), **options)


def test_nothing_can_be_asked_without_a_model_or_with_one_of_another_kind(
    vlm_model: Path,
    scenes: Scenes,
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=r"prompts\.model names no network"):
        ask_all(Predicted(path=tmp_path / "p.jsonl"), scenes, range(1))
    with pytest.raises(ModelError, match="is not a model for zero-shot-image-classification"):
        ask_all(Predicted(path=tmp_path / "q.jsonl", model=str(vlm_model), device="cpu"), scenes, range(1))


@pytest.mark.parametrize("name", TABLES)
def test_every_class_has_a_word_that_stands_for_it_first(name: str) -> None:
    table = ClassTable.load(name)
    words = [word_of(i, table) for i in range(1, len(table)) if table.synonyms[i]]
    assert len(set(words)) == len(words)
    assert [table.id_of(word)[0] for word in words] == [i for i in range(1, len(table)) if table.synonyms[i]]


@pytest.mark.parametrize("name", TABLES)
def test_a_classifier_s_words_and_the_names_of_a_file_come_back_as_their_classes(name: str, tmp_path: Path) -> None:
    """Also where a class has the name of another one among its words (ADE20K's screen), or its name among none."""
    table = ClassTable.load(name)
    axis = (TextSegment(letter_t5_tokenizer(), 512),)
    asked = [i for i in range(1, len(table)) if table.synonyms[i]]
    sample = Sample("a", np.zeros((1, 1, 3), np.uint8), None, ())
    for position, said in enumerate(([word_of(i, table) for i in asked], [table.names[i] for i in asked])):
        for i, word in zip(asked, said, strict=True):
            path = write(tmp_path / f"{position}_{i}.json", {"a": [word]})
            (prompt,) = Predicted(path=path, model=None)(sample, table, axis)
            assert list(prompt.class_tokens) == [i], word


def test_the_bundled_classifier_finds_the_classes_of_scenes(scenes: Scenes, segments: Any, tmp_path: Path) -> None:
    """The predictions behind experiments/RESULTS_OVSS.md."""
    source = Predicted(path=write(tmp_path / "p.json", predictions(scenes)), model=None, share=0.5)
    source.setup(scenes)
    present = [{scenes.classes.names[i] for i in scenes[position].present} for position in range(3)]
    assert named(source, scenes, segments) == present


def test_a_run_says_how_well_the_names_fit(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = Scenes(protocol=Protocol("ovss", "ignore", "skip", "vocabulary"), count=4)
    dataset.setup()
    present = [dataset[position].present for position in range(4)]
    names = dataset.classes.names
    # One class of each image is left out, and in the first image one is named that is not there.
    said = {image: [names[i] for i in found[1:]] for image, found in zip(dataset.image_ids, present, strict=True)}
    said[dataset.image_ids[0]].append(names[next(i for i in range(1, len(names)) if i not in present[0])])
    path = write(tmp_path / "p.json", said)
    options = ["prompts=predicted", "prompts.model=null", f"prompts.path={path}", "limit=4", "protocol=ovss"]
    summary = evaluate(config.compose([*tiny, *options]), tmp_path / "run")
    assert summary is not None
    total = sum(map(len, present))
    assert summary.names_recall == pytest.approx(100 * (total - 4) / total, abs=1e-3)
    assert summary.names_precision == pytest.approx(100 * (total - 4) / (total - 3), abs=1e-3)
    assert summary.miou is not None
    assert summary.miou <= (summary.miou_bound or 0) < 100
    printed = capsys.readouterr().out
    assert "names given" in printed
    assert "words that another network or a file gives" in " ".join(printed.split())
