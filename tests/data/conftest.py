"""Data sets as Hydra builds them from conf/dataset and conf/protocol."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

from goca.data.base import SegmentationDataset
from tests.helpers.options import option

Build = Callable[..., SegmentationDataset]


def build_dataset(name: str, root: Path | str = "nowhere", protocol: str = "standard", **overrides: Any) -> SegmentationDataset:
    config = OmegaConf.create(
        {
            "paths": {"data": str(root)},
            "split": None,
            "protocol": option("protocol", protocol),
            "dataset": option("dataset", name),
        }
    )
    config.dataset.update(overrides)
    return hydra.utils.instantiate(config.dataset)


@pytest.fixture(scope="session")
def build() -> Build:
    return build_dataset


@pytest.fixture(scope="session")
def samples(shared: Path) -> Path:
    return shared / "samples"
