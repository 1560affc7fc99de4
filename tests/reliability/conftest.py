"""A tiny checkpoint on disk, and runs of it that take a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from benchmarks.kills import TIMES
from goca import config
from goca.run import evaluate
from tests.helpers.tiny_unet import tiny_sd

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny_sd().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(checkpoint: Path) -> list[str]:
    """Overrides of a job that needs a second: 7 images in 4 batches."""
    return [
        f"model.checkpoint={checkpoint}", "model.size=32", "model.device=cpu", "limit=7", "logger=none",
        "data.batch_size=2", "figures.count=1", "figures.gallery=0", "trainer.enable_progress_bar=false",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def compose(tiny: list[str]) -> Callable[..., DictConfig]:
    return lambda *overrides: config.compose([*tiny, *overrides])


@pytest.fixture(scope="session")
def run(compose: Callable[..., DictConfig]) -> Run:
    """`run(folder, *overrides)`: evaluate in this process; the summary without its times."""
    return lambda folder, *overrides: numbers(evaluate(compose(*overrides), folder))


@pytest.fixture(scope="session")
def undisturbed(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the tiny job."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder)
    return folder


def numbers(summary: dict[str, Any]) -> dict[str, Any]:
    """What two equal runs have in common: everything but times and memory."""
    return {key: value for key, value in summary.items() if key not in TIMES}
