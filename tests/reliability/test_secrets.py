"""A canary key in the environment turns up in no file, message, logger or report of a run."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from goca import config, evaluate_generation, generate
from goca.compare.__main__ import compare
from goca.config.redact import HIDDEN, redact
from goca.data.classes import ClassTable
from goca.errors import ConfigError
from goca.loggers import CsvLogger, Report
from goca.runs.evaluation import evaluate

CANARY = "sk-canary-4f9a77c1e2"


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"):
        monkeypatch.setenv(name, CANARY)
    return CANARY


def _files_with(folder: Path, text: str) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_a_run_writes_no_secret(compose, canary: str, tmp_path: Path, monkeypatch, capfd, caplog) -> None:
    """Even where the configuration itself refers to it, or an address holds a password."""
    seen: list[Mapping] = []
    monkeypatch.setattr(CsvLogger, "log", lambda self, report: seen.append(report.config))
    cfg = compose(
        "logger=csv", "group=${oc.env:OPENAI_API_KEY}", "+trainer.default_root_dir=/tmp/${oc.env:DB_PASSWORD}",
        f"paths.data=https://me:{canary[:5]}hunter2@host/x",
    )  # fmt: skip
    evaluate(cfg, tmp_path / "run")
    assert not _files_with(tmp_path, canary)
    assert not _files_with(tmp_path, "hunter2")
    assert HIDDEN in (tmp_path / "run" / "config.yaml").read_text()
    assert canary not in str(seen)
    assert canary not in "".join(capfd.readouterr())
    assert canary not in caplog.text


def test_weights_and_biases_and_the_comparison_page_hold_no_secret(compose, canary: str, tmp_path: Path) -> None:
    """What W&B would send is in its file; the last word before the canary shows that the file can be searched."""
    pytest.importorskip("plotly", reason="plotly is not installed")
    cfg = compose(
        "logger=wandb", "logger.mode=offline", "logger.tags=[searchable-tag]", "group=${oc.env:OPENAI_API_KEY}",
        "figures.gallery=2", f"paths.data=https://me:{canary[:5]}hunter2@host/x",
    )  # fmt: skip
    evaluate(cfg, tmp_path / "run")
    compare(config.compose([f"runs=[{tmp_path / 'run'}]", f"output={tmp_path / 'page'}", "settings.samples=10"], "compare"))
    assert any(path.endswith(".wandb") for path in _files_with(tmp_path, "searchable-tag"))
    assert (tmp_path / "page" / "index.html").is_file()
    for secret in (canary, "hunter2"):
        assert not _files_with(tmp_path, secret)


def test_a_logger_that_fails_repeats_no_secret(canary: str, tmp_path: Path, caplog, monkeypatch) -> None:
    def refused(self, report: Report) -> None:
        raise ConnectionError(f"401 for https://user:hunter2@host with the key {canary}")

    monkeypatch.setattr("goca.runs.report.PAUSES", ())
    monkeypatch.setattr(CsvLogger, "log", refused)
    CsvLogger().log_safely(Report(tmp_path, {}, {}, ClassTable.from_names(["cat"])))
    assert "could not log this run" in caplog.text
    assert canary not in caplog.text
    assert "hunter2" not in caplog.text


def test_generated_pictures_come_without_secrets(canary: str, tmp_path: Path, monkeypatch) -> None:
    """Both commands of generation write their configuration, and hand it to the logger, like the main job."""
    seen: list[Mapping] = []
    monkeypatch.setattr(CsvLogger, "log", lambda self, report: seen.append(report.config))
    given = ["logger=csv", "paths.output=${oc.env:OPENAI_API_KEY}", "progress=false"]
    made = config.compose([*given, "limit=2", "steps=1"], "generate")
    generate.generate(made, tmp_path / "made")
    folders = [f"images=[{tmp_path / 'made'}]", "reference=scenes:2", f"cache={tmp_path / 'cache'}"]
    measured = config.compose([*given, *folders, "min_images=2", "bootstrap=2"], "evaluate_generation")
    evaluate_generation.evaluate(measured, tmp_path / "measured")
    assert not _files_with(tmp_path, canary)
    assert len(seen) == 2
    assert canary not in str(seen)
    assert (tmp_path / "made" / "config.yaml").read_text().count(HIDDEN) >= 1


def test_a_message_holds_no_secret(canary: str, capsys, monkeypatch) -> None:
    def main() -> None:
        raise ConfigError(f"the server refused the key {canary} at https://user:{canary}@host")

    with pytest.raises(SystemExit):
        config.command(main)
    assert capsys.readouterr().err == f"error: the server refused the key {HIDDEN} at https://{HIDDEN}@host\n"


def test_ordinary_words_stay(monkeypatch) -> None:
    monkeypatch.setenv("SHORT_KEY", "cat")
    monkeypatch.setenv("MONKEY", "a long enough value")
    kept = {"words": ["cat", "background_token"], "url": "https://host/path@2", "size": 64, "nothing": None}
    assert redact(kept) == kept
    assert not [name for name in os.environ if re.search("canary", os.environ[name])]
