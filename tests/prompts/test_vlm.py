"""Captions from a small vision-language model that is built here, through transformers' own pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from goca.data.protocol import Protocol
from goca.data.scenes import Scenes
from goca.errors import ModelError
from goca.prompts.asked import ask_all
from goca.prompts.vlm import VLM


def test_a_local_model_captions(vlm_model: Path, tmp_path: Path) -> None:
    dataset = Scenes(protocol=Protocol("standard", "ignore", "skip", "classes"), count=2)
    dataset.setup()
    source = VLM(path=tmp_path / "c.jsonl", model=str(vlm_model), instruction="name the nouns", device="cpu", max_new_tokens=6)
    assert ask_all(source, dataset, range(2)) == {}
    rows = [json.loads(line) for line in source.path.read_text().splitlines()]
    assert [row["image_id"] for row in rows] == dataset.image_ids
    for row in rows:
        assert row["status"] in ("ok", "empty")
        assert not (row["caption"] or "").startswith("name the nouns")  # the answer alone, without the request
    assert ask_all(source, dataset, range(2)) == {}


def test_no_such_model(tmp_path: Path) -> None:
    source = VLM(path=tmp_path / "c.jsonl", model=str(tmp_path / "nowhere"), instruction="x", device="cpu")
    with pytest.raises(ModelError, match=r"prompts\.model: .*nowhere"):
        source.load()
