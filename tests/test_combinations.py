"""Stages of different methods together: a run ends with a summary or is refused with one message, never with a traceback."""

import random
from pathlib import Path

import pytest

from goca import config
from goca.errors import ConfigError, ModelError
from goca.paths import CONF
from goca.runs.evaluation import evaluate

STAGES = ("aggregation", "calibration", "refinement", "decision", "views", "passes", "sizing")
# Extras, files that are not there, and what needs many forwards an image.
LEFT_OUT = {"crf", "fttm", "files", "loss_power", "elbo", "none"}
PROMPTS = ("classes", "sentence", "unprompted", "concepts", "vocabulary")


def combinations(count: int) -> list[tuple[str, ...]]:
    """A preset on one of two models, about a third of its stages from elsewhere."""
    draw = random.Random(0)
    chosen = {group: sorted({path.stem for path in (CONF / group).glob("*.yaml")} - LEFT_OUT) for group in ("preset", *STAGES)}
    found = []
    for _ in range(count):
        others = [f"{group}={draw.choice(chosen[group])}" for group in STAGES if draw.random() < 0.3]
        others += [f"prompts={draw.choice(PROMPTS)}"] if draw.random() < 0.3 else []
        model = draw.choice(("scenes_unet_tiny", "scenes_mmdit"))
        found.append((f"model={model}", f"preset={draw.choice(chosen['preset'])}", *others))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("overrides", combinations(16), ids=" ".join)
def test_stages_go_together_or_are_refused(overrides: tuple[str, ...], tmp_path: Path) -> None:
    # Four pictures: of one alone a weak method that is told all names may have every pixel wrong.
    quiet = ["logger=none", "figures.count=1", "figures.gallery=0", "trainer.enable_progress_bar=false", "limit=4"]
    try:
        summary = evaluate(config.compose([*quiet, *overrides]), tmp_path / "run")
    except (ConfigError, ModelError):  # before the first image, or of the first
        return
    assert summary is not None
    assert summary["failed"] == 0
    assert 0 < summary["miou"] <= 100
