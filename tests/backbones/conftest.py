"""A small pipeline on disk."""

import shutil
from pathlib import Path

import pytest
import torch

from goca.backbones.loading import pipelines
from tests.helpers.saved_pipeline import backbone, seen
from tests.helpers.tiny_pipelines import tiny_pipeline


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read only."""
    path = tmp_path_factory.mktemp("flux") / "pipeline"
    tiny_pipeline("flux_dev").save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def expected(folder: Path) -> torch.Tensor:
    """What is seen in the ordinary way."""
    return seen(backbone(folder).load())


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """To be damaged."""
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if any weights are read."""

    def refuse(*_, **__):
        raise AssertionError("weights were read before the mistake was found")

    monkeypatch.setattr(pipelines, "load_pipeline", refuse)
