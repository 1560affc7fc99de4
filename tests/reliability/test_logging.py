"""A logger that fails is asked again, never stops the run, and leaves what it could not send where a person can send it."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from goca.errors import ConfigError
from goca.loggers import Logger, NoLogger, Report, WandbLogger
from goca.runs import report as base
from goca.runs.evaluation import evaluate
from tests.helpers.fake_runs import report


class Flaky(Logger):
    """Fails a number of times."""

    def __init__(self, failures: int, error: Exception | None = None, kept: str | None = None) -> None:
        self.calls, self.failures, self.kept = 0, failures, kept
        self.error = error or ConnectionError("the service is away")

    def log(self, report: Report) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "there"

    def keep(self, report: Report) -> str | None:
        if self.kept == "full":
            raise OSError("no space left")
        return self.kept


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr(base.time, "sleep", waited.append)
    return waited


@pytest.fixture
def made_up(tmp_path: Path) -> Report:
    return report(tmp_path / "run")


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_it_is_asked_again_after_growing_pauses(made_up: Report, pauses: list[float], caplog, failures: int) -> None:
    logger = Flaky(failures)
    assert logger.log_safely(made_up) == "there"
    assert logger.calls == failures + 1
    assert pauses == list(base.PAUSES[:failures])
    assert caplog.text.count("next attempt in") == failures


@pytest.mark.parametrize(("kept", "where"), [(None, None), ("kept here", "kept here"), ("full", None)])
def test_when_it_stays_away_the_report_is_kept(made_up: Report, pauses: list[float], caplog, kept, where) -> None:
    assert Flaky(99, kept=kept).log_safely(made_up) == where
    assert f"the same command with output={made_up.folder} logs it again without computing" in caplog.text
    assert ("no space left" in caplog.text) == (kept == "full")


def test_what_a_person_has_to_mend_is_not_tried_again(made_up: Report, pauses: list[float], caplog) -> None:
    logger = Flaky(99, ConfigError("it needs a package"))
    assert logger.log_safely(made_up) is None
    assert (logger.calls, pauses) == (1, [])
    assert "it needs a package" in caplog.text


def test_a_failing_logger_stops_no_run_and_is_asked_after_the_results_are_written(
    compose, tmp_path: Path, monkeypatch, pauses: list[float], capsys
) -> None:
    seen = []

    def down(self, report: Report) -> None:
        seen.append(json.loads((report.folder / "summary.json").read_text())["images"])
        raise ConnectionError("the network is unreachable")

    monkeypatch.setattr(NoLogger, "log", down)
    assert evaluate(compose(), tmp_path)["images"] == 7
    assert seen == [7] * (1 + len(base.PAUSES))
    monkeypatch.undo()
    reports = []
    monkeypatch.setattr(NoLogger, "log", lambda self, report: reports.append(report))
    monkeypatch.delattr("goca.backbones.unet.UNetBackbone.load")  # nothing is computed
    evaluate(compose(), tmp_path)
    assert reports[0].figures.keys() == {"overview", "attention_1000000", "layer_weights", "confusion"}
    assert len(reports[0].tables["images"].rows) == 7


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address of this machine where nobody answers, as that of the service."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # held but not listening: connections are refused
        address = f"http://127.0.0.1:{held.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        yield address


def test_wandb_without_a_network_leaves_an_offline_run(made_up: Report, unreachable: str, monkeypatch, caplog) -> None:
    monkeypatch.setattr(base, "PAUSES", ())
    where = WandbLogger(mode="online", init_timeout=2).log_safely(made_up)
    assert where is not None
    (folder,) = made_up.folder.glob("wandb/offline-run-*")
    assert f"wandb sync {folder}" in where
    (file,) = folder.glob("run-*.wandb")
    assert file.stat().st_size > 10_000  # tables and pictures are in it
    assert "could not log this run" in caplog.text
    assert "0123456789" not in caplog.text


def test_wandb_that_loses_the_network_half_way_says_what_to_sync(made_up: Report, monkeypatch) -> None:
    import wandb

    finish = wandb.Run.finish

    def slow(self, *arguments, **options) -> None:
        finish(self, *arguments, **options)
        raise TimeoutError("Timed out finishing run.")

    monkeypatch.setattr(wandb.Run, "finish", slow)
    where = WandbLogger(mode="offline").log_safely(made_up)
    assert where is not None
    assert "not all of it has arrived; `wandb sync" in where
