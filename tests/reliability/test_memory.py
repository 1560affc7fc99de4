"""What a long run keeps: nothing that grows. docs/reliability.md has the figure of 2,000 images."""

import json
from pathlib import Path

from goca.backbones.loading import embeddings
from tests.helpers.kills import growth, numbers


def test_more_prompts_than_are_kept(run, undisturbed: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(embeddings, "_IN_MEMORY", 2)
    assert run(tmp_path) == numbers(json.loads((undisturbed / "summary.json").read_text()))


def test_memory_stays_flat(run, tmp_path: Path) -> None:
    run(tmp_path, "limit=60", "figures.count=0", "data.batch_size=4")
    assert growth(tmp_path, after=20)["growth_mb"] < 20
