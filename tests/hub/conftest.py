"""One server for the session, with a small Stable Diffusion on it; every test has an empty cache and no faults of others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from goca.backbones.base import Backbone
from goca.hub import download
from tests.helpers.hub_repositories import Official, official
from tests.helpers.hub_server import HubServer
from tests.helpers.tiny_pipelines import tiny_backbone

SD = "small/sd"


@pytest.fixture(scope="session")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Official:
    """To be read only."""
    return official("sd", tmp_path_factory.mktemp("sd") / "repository")


@pytest.fixture(scope="session")
def running(sd: Official) -> Iterator[HubServer]:
    server = HubServer()
    server.add(SD, sd.folder)
    yield server
    server.close()


@pytest.fixture
def hub(running: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The server, the hub's client turned to it, and empty caches."""
    monkeypatch.setattr(constants, "ENDPOINT", running.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(download, "PATIENCE", 2.0)
    monkeypatch.setattr(download, "_FIRST_WAIT", 0.01)
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("GOCA_HUB_COMMITS", "{}")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    before = dict(running.repositories)
    running.forget()
    yield running
    running.faults.clear()
    running.repositories = before


def small(checkpoint: str = SD, **options: object) -> Backbone:
    return tiny_backbone("sd", checkpoint=checkpoint, **options)
