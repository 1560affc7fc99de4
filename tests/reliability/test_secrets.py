"""A canary key in the environment turns up in no file, message or logger of a run."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from goca import config
from goca.errors import ConfigError
from goca.loggers import CsvLogger, Report
from goca.redact import HIDDEN, redact
from goca.run import evaluate

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
        "logger=csv", "experiment=${oc.env:OPENAI_API_KEY}", "+trainer.default_root_dir=/tmp/${oc.env:DB_PASSWORD}",
        f"paths.data=https://me:{canary[:5]}hunter2@host/x",
    )  # fmt: skip
    evaluate(cfg, tmp_path / "run")
    assert not _files_with(tmp_path, canary)
    assert not _files_with(tmp_path, "hunter2")
    assert HIDDEN in (tmp_path / "run" / "config.yaml").read_text()
    assert canary not in str(seen)
    assert canary not in "".join(capfd.readouterr())
    assert canary not in caplog.text


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
    assert Report is not None
    assert not [name for name in os.environ if re.search("canary", os.environ[name])]
