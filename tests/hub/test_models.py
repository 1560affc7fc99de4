"""Models of transformers by their hub id: their files as those of checkpoints, one commit, progress, and errors in words."""

import shutil
from pathlib import Path

import pytest

from goca.errors import ModelError
from goca.generation.measures import ClipScore
from goca.hub import repositories
from goca.hub.models import model_folder
from tests.helpers.hub_server import HubServer
from tests.helpers.tiny_clip import tiny_clip

NAME = "small/clip"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_clip(tmp_path_factory.mktemp("clip"))
    for decoy in ("pytorch_model.bin", "flax_model.msgpack", "model.onnx", "model.fp16.safetensors"):
        (folder / decoy).write_bytes(b"not to be read")
    return folder


@pytest.fixture
def clip(hub: HubServer, saved: Path) -> HubServer:
    hub.add(NAME, saved)
    return hub


def test_only_settings_and_safetensors_are_fetched_and_only_once(clip: HubServer, saved: Path, capsys, caplog) -> None:
    with caplog.at_level("INFO"):
        measure = ClipScore(NAME, "cpu")
        measure.load()
    decoys = {"pytorch_model.bin", "flax_model.msgpack", "model.onnx", "model.fp16.safetensors"}
    assert clip.fetched() == {file.name for file in saved.iterdir()} - decoys
    assert f"fetching {NAME}" in caplog.text + capsys.readouterr().out
    clip.forget()
    measure.load()
    assert clip.fetched() == set()


def test_the_cache_serves_where_the_hub_is_down(clip: HubServer) -> None:
    first = model_folder(NAME, None, "clip.model")
    repositories.forget()
    with clip.failing(".", status=503):
        assert model_folder(NAME, None, "clip.model") == first


@pytest.mark.parametrize(
    ("name", "fault", "message"),
    [
        ("small/absent", {}, r"clip\.model: there is no repository small/absent"),
        (NAME, {"status": 429, "headers": {"Retry-After": "60"}}, r"clip\.model: .* limits requests"),
        ("no hub id", {}, r"clip\.model: 'no hub id' is not a hub id"),
    ],
)
def test_what_cannot_be_had_is_one_message(clip: HubServer, name: str, fault: dict, message: str) -> None:
    with clip.failing("." if fault else "never", **fault), pytest.raises(ModelError, match=message):
        ClipScore(name, "cpu").load()


def test_pickles_are_not_read(hub: HubServer, saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "old")
    (folder / "model.safetensors").unlink()
    hub.add("small/old", folder)
    with pytest.raises(ModelError, match=r"small/old has no model\.safetensors"):
        model_folder("small/old", None, "prompts.model")
    assert hub.fetched() == set()


def test_a_folder_needs_no_hub(hub: HubServer, tmp_path: Path) -> None:
    assert model_folder(str(tmp_path), None, "clip.model") == tmp_path
    assert hub.requests == []
