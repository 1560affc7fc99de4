"""The command: python -m goca.caption."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from goca import caption
from goca.config import compose
from goca.data.base import Sample
from goca.data.classes import ClassTable
from goca.data.scenes import Scenes
from goca.errors import ConfigError, DataError, ModelError
from goca.paths import CONF
from goca.prompts import TextSegment
from goca.prompts.align import align
from goca.prompts.caption import parse
from goca.prompts.coverage import Coverage
from goca.scenes.tokenizer import small_clip_tokenizer
from tests.helpers.fake_endpoint import completion, error, nouns, serve

VOC = ClassTable.load("voc")
KEY = "sk-secret-0123456789"


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """Override that names a tokenizer on disk."""
    small_clip_tokenizer().save_pretrained(tmp_path / "model" / "tokenizer")
    return f"model.checkpoint={tmp_path / 'model'}"


def test_inspect_shows_what_a_caption_lacks(tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = compose(
        ["dataset.count=3", "prompts=published", f"prompts.path={tmp_path / 'c.json'}", "inspect=2", tokenizer], "caption"
    )
    images = caption.config.build(cfg, "dataset")
    images.setup()
    first, second = images[0], images[1]
    shown = [images.classes.synonyms[i][0] for i in first.present]
    captions = {first.image_id: {"caption": f"{shown[0]}, unicorn"}}
    (tmp_path / "c.json").write_text(json.dumps(captions))
    summary = caption.run(cfg, tmp_path / "out")
    printed = capsys.readouterr().out
    assert f"caption  {shown[0]}, unicorn" in printed
    assert f"missed   {', '.join(images.classes.names[i] for i in first.present[1:])}" in printed
    assert "start" in printed
    assert summary["images"] == 2
    assert summary["without_prompt"] == 1
    assert summary["present"] == len(first.present) + len(second.present)
    assert summary["missed"] == summary["present"] - 1
    assert json.loads((tmp_path / "out" / "captions.json").read_text()) == summary


def test_captions_are_written_and_counted(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(lambda _: nouns(["sun"], ["grass"])) as endpoint:
        overrides = [
            "dataset.count=3",
            "prompts=openai",
            f"prompts.base_url={endpoint.url}",
            f"prompts.path={tmp_path / 'c.jsonl'}",
        ]
        summary = caption.run(compose([*overrides, tokenizer, "prompts.input_price=1000"], "caption"), tmp_path)
    assert summary["images"] == summary["labelled"] == 3
    assert summary["answers"] == {"ok": 3, "input_tokens": 300, "output_tokens": 30, "cost": 0.3}
    assert summary["prompts"]["source"] == "openai"
    assert "hallucinated" in capsys.readouterr().out
    assert KEY not in json.dumps(summary)


def test_images_without_an_answer_are_named_at_the_end(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(lambda _: error(400, "too large")) as endpoint:
        overrides = ["dataset.count=3", "limit=2", "prompts=openai", f"prompts.base_url={endpoint.url}"]
        cfg = compose([*overrides, f"prompts.path={tmp_path / 'c.jsonl'}", tokenizer], "caption")
        with pytest.raises(DataError, match=r"2 images are left out, such as \d+:.*too large"):
            caption.run(cfg, tmp_path)


def test_images_that_cannot_be_read_are_left_out(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Scenes.__getitem__

    def broken(self: Scenes, index: int) -> Sample:
        if index == 0:
            raise DataError("the image is too large")
        return original(self, index)

    monkeypatch.setattr(Scenes, "__getitem__", broken)
    with pytest.raises(DataError, match=r"1 images are left out.*too large"):
        caption.run(compose(["dataset.count=3", tokenizer], "caption"), tmp_path)
    assert json.loads((tmp_path / "captions.json").read_text())["images"] == 2


@pytest.mark.parametrize("source", ["classes", "vocabulary"])
def test_sources_without_captions_are_counted_too(tmp_path: Path, tokenizer: str, source: str) -> None:
    summary = caption.run(compose(["dataset.count=2", f"prompts={source}", tokenizer], "caption"), tmp_path)
    assert summary["missed"] == 0
    assert (summary["hallucinated"] == 0) == (source == "classes")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prompts.on_missing=maybe", "'error', 'classes' or 'skip'"),
        ("prompts.unknown=1", r"there is no key 'prompts\.unknown'"),
    ],
)
def test_wrong_options(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        caption.run(compose(["prompts=published", "prompts.path=c.json", override], "caption"), tmp_path)


@pytest.mark.parametrize("file", sorted((CONF / "prompts").glob("*.yaml")), ids=lambda file: file.stem)
def test_configurations_show_every_option(file: Path) -> None:
    """Each yaml builds, begins with when to use it, and lists all options of its class."""
    cfg = compose([f"prompts={file.stem}"], "caption")
    if OmegaConf.is_missing(cfg.prompts, "path"):
        cfg.prompts.path = "x"
    source = caption.config.build(cfg, "prompts")
    of_captions = {"ground_truth", "add_missing", "classes_first", "tidy"}  # that lists of names have no use for
    fixed = {"vlm": {"workers"}, "predicted": {"workers", *of_captions}}.get(file.stem, set())
    assert {field.name for field in fields(source)} - fixed == set(cfg.prompts) - {"_target_"}
    assert file.read_text().startswith("# ")


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="text_axis: no tokenizer"):
        caption.run(compose([f"model.checkpoint={tmp_path}"], "caption"), tmp_path)


def test_the_key_appears_nowhere(warm_python: str, tmp_path: Path, tokenizer: str) -> None:
    """The real command with a key that the endpoint refuses and repeats: one message, exit code 2."""
    with serve(lambda _: error(401, f"wrong key {KEY}")) as endpoint:
        overrides = ["dataset.count=2", "prompts=openai", f"prompts.base_url={endpoint.url}", "prompts.path=c.jsonl", tokenizer]
        root = Path(__file__).parent.parent.parent
        environment = os.environ | {"OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(root)}
        command = [warm_python, "-m", "goca.caption", *overrides]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert "does not accept the key in OPENAI_API_KEY" in done.stderr
    assert "Traceback" not in done.stderr
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert KEY.encode() not in written + done.stdout.encode() + done.stderr.encode()


def test_coverage() -> None:
    cat, dog, sheep = (VOC.id_of(word)[0] for word in ("cat", "dog", "sheep"))
    coverage = Coverage()
    short = (TextSegment(small_clip_tokenizer(["cat", "sheep"]), 5),)
    prompt = align(parse("cat, sheep", VOC), short)
    labelled = Sample("a", np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8), (cat, dog))
    assert coverage.add(labelled, "cat, sheep", [prompt], VOC) == {dog}
    assert coverage.add(Sample("b", labelled.image, None, ()), "cat", [], VOC) == frozenset()
    summary = coverage.summary(VOC)
    assert {key: value for key, value in summary.items() if key != "by_class"} == {
        "images": 2,
        "labelled": 1,
        "without_prompt": 1,
        "with_warning": 0,
        "mentioned": 3,
        "present": 2,
        "missed": 1,
        "hallucinated": 1,
        "lost": 0,
    }
    assert summary["by_class"]["mentioned"] == {"cat": 2, "sheep": 1}
    assert coverage.hallucinated == {sheep: 1}


def test_refused_images_are_counted_without_a_prompt(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(lambda _: completion(None, refusal="no")) as endpoint:
        overrides = [
            "dataset.count=2",
            "prompts=openai",
            f"prompts.base_url={endpoint.url}",
            f"prompts.path={tmp_path / 'c.jsonl'}",
        ]
        summary = caption.run(compose([*overrides, tokenizer], "caption"), tmp_path)
    assert summary["without_prompt"] == 2
    assert summary["answers"]["refused"] == 2
