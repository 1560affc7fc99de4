"""A model that cannot be had is refused at once: the hub is asked one time, and transformers not at all."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from goca.errors import ModelError
from goca.prompts import reachable
from goca.prompts.reachable import find_model


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that the hub was asked for, which cannot be reached."""
    names: list[str] = []

    def model_info(_: HfApi, name: str, **__: object) -> None:
        names.append(name)
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return names


def test_without_a_network_it_is_one_message_after_one_question(asked: list[str]) -> None:
    with pytest.raises(ModelError, match=r"prompts\.model=some/model: .* not in the cache, and the hub cannot be reached"):
        find_model("some/model", None, "prompts.model")
    assert asked == ["some/model"]


def test_what_is_in_the_cache_is_used_without_asking_again(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reachable, "try_to_load_from_cache", lambda *_, **__: "config.json")
    find_model("some/model", None, "clip")
    assert constants.HF_HUB_OFFLINE


def test_a_folder_needs_no_hub(asked: list[str], tmp_path: Path) -> None:
    find_model(str(tmp_path), None, "clip")
    assert asked == []


def test_what_the_hub_refuses_is_no_matter_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def model_info(*_: object, **__: object) -> None:
        refused = HfHubHTTPError.__new__(HfHubHTTPError)
        Exception.__init__(refused, "404 no such repository")
        refused.response = SimpleNamespace(status_code=404)
        raise refused

    monkeypatch.setattr(HfApi, "model_info", model_info)
    with pytest.raises(ModelError, match="the hub does not give it out \\(404 no such repository"):
        find_model("some/model", None, "clip")
