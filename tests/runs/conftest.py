"""A sweep in this process."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from goca import config
from goca.run import main
from tests.helpers.sweep import Sweep


@pytest.fixture
def sweep(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hydra_restore_singletons: None) -> Iterator[Sweep]:
    """`python -m goca.run -m ...` in this process; returns its exit code."""
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # set by the command, and taken back behind the test

    def call(*overrides: str) -> int | str | None:
        GlobalHydra.instance().clear()
        job = [f"paths.output={tmp_path}", *tiny, "limit=1", "figures.count=0"]
        monkeypatch.setattr(sys, "argv", ["goca.run", "-m", *job, *quiet, *overrides])
        try:
            config.command(main)
        except SystemExit as stop:
            return stop.code
        return 0

    yield call
    GlobalHydra.instance().clear()
