"""Runs of the tiny checkpoint that take a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from goca import config
from goca.runs.evaluation import evaluate
from tests.helpers.kills import numbers

Run = Callable[..., dict[str, Any]]


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
