"""Every key of every configuration is checked before anything is read or loaded, and a missing package is told at the start."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from goca import config
from goca.config.settings import SETTINGS, keys, problems
from goca.errors import ConfigError, require
from goca.loggers import CsvLogger, Several, TensorBoardLogger

PROGRAMS = sorted(SETTINGS)
# Keys that another object checks, or Hydra itself.
ELSEWHERE = {
    "config": {"output", "paths.data"},
    "caption": {"paths.data"},
    "generate": {"prompts.source", "output"},
    "evaluate_generation": {"images"},
}


def _plain_keys(section: DictConfig, prefix: str = "") -> set[str]:
    """Dotted keys outside sections that are built by a class of their own."""
    found = set()
    for key in section:
        node = section._get_node(key)
        if isinstance(node, DictConfig) and node._is_none() is False:
            if "_target_" not in node and len(node):
                found |= _plain_keys(node, f"{prefix}{key}.")
        else:
            found.add(f"{prefix}{key}")
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_key_is_left_unchecked(program: str) -> None:
    cfg = config.compose([], program)
    without = ("model", "dataset", "trainer", "backbone", "logger", "protocol", "guidance", "extractor", "preset")
    plain = {key for key in _plain_keys(cfg) if key.split(".")[0] not in without}
    assert plain <= set(keys(SETTINGS[program])) | ELSEWHERE.get(program, set())


@pytest.mark.parametrize(
    ("program", "override", "words"),
    [
        ("config", "seed=abc", ["seed", "whole number", "'abc'"]),
        ("config", "seed=1.5", ["seed", "whole number", "1.5"]),
        ("config", "seed=null", ["seed", "whole number", "None"]),
        ("config", "seed=-1", ["seed", "-1"]),
        ("config", "seed=true", ["seed", "whole number"]),
        ("config", "seed=${nowhere}", ["seed", "nowhere"]),
        ("config", "resume=maybe", ["resume", "true or false"]),
        ("config", "save_predictions=maybe", ["save_predictions", "true or false"]),
        ("config", "figures.count=-1", ["figures.count", "-1"]),
        ("config", "figures.count=abc", ["figures.count", "whole number"]),
        ("config", "figures.gallery=abc", ["figures.gallery", "whole number"]),
        ("config", "figures=null", ["figures", "section"]),
        ("config", "attention.max_bytes=abc", ["attention.max_bytes", "whole number"]),
        ("config", "attention.max_bytes=0", ["attention.max_bytes", "greater than 0"]),
        ("config", "run.max_failed=-1", ["run.max_failed", "-1"]),
        ("config", "run.max_failed=abc", ["run.max_failed", "whole number"]),
        ("config", "group=null", ["group"]),
        ("config", "trainer.enable_progress_bar=maybe", ["trainer.enable_progress_bar", "true or false"]),
        ("config", "indices=[a]", ["indices", "whole number"]),
        ("observe", "save=xyz", ["save", "figures", "tensors"]),
        ("observe", "background=a", ["background", "number"]),
        ("observe", "background=nan", ["background", "finite"]),
        ("observe", "pixels=[[3]]", ["pixels.0", "2 items"]),
        ("observe", "words=cat", ["words", "list"]),
        ("app", "port=70000", ["port", "65535"]),
        ("app", "models=[]", ["models", "1"]),
        ("caption", "inspect=some", ["inspect", "whole number"]),
        ("compare", "title=null", ["title"]),
        ("generate", "steps=0", ["steps", "0"]),
        ("generate", "seeds=other", ["seeds", "same", "by_id"]),
        ("evaluate_generation", "resize=stretch", ["resize", "crop", "squash"]),
        ("train", "scenes=many", ["scenes", "whole number"]),
        ("train_decoder", "learning_rate=0", ["learning_rate", "greater than 0"]),
        ("dashboard", "offline=maybe", ["offline", "true or false"]),
    ],
)
def test_a_wrong_value_is_one_message_before_anything_loads(program: str, override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.compose([override], program)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_every_wrong_key_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        config.compose(["seed=abc", "resume=maybe"])
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["seed", "resume"]


@given(st.one_of(st.text(), st.floats(), st.booleans(), st.none(), st.lists(st.integers(), max_size=2)))
def test_only_whole_numbers_are_seeds(value: object) -> None:
    assert problems({"seed": value}, "config") != []


@given(st.integers(0, 2**63 - 1))
def test_every_whole_number_is_a_seed(value: int) -> None:
    assert problems({"seed": value}, "config") == []


def test_a_group_may_be_called_by_a_number() -> None:
    assert config.compose(["group=3"]).group == 3


def test_a_setting_that_is_a_reference_is_checked_by_its_value() -> None:
    with pytest.raises(ConfigError, match="seed: should be a whole number"):
        config.compose(["seed=${group}"])


def test_a_missing_package_is_named_as_it_can_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"it needs the package nothing: .*pip install -e '\.\[some\]'"):
        require("no_such_module", "nothing", "some", "it")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[tensorboard\]'"):
        Several({"csv": CsvLogger(), "tensorboard": TensorBoardLogger()}).check()
    Several({"csv": CsvLogger(), "tensorboard": TensorBoardLogger()}, use=("csv",)).check()


def test_the_package_of_an_endpoint_is_looked_for_before_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    cfg = config.compose(["prompts=openai", "prompts.key_variable=null"])
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[captions\]'"):
        config.build(cfg, "prompts").load()


def test_what_a_person_has_to_give_is_named() -> None:
    with pytest.raises(ConfigError, match="prompt has to be given, as prompt="):
        config.check(config.compose([], "observe"), "observe", complete=True)
    config.check(config.compose(["image=a.png", "prompt=cat"], "observe"), "observe", complete=True)


def test_captions_of_a_model_of_the_hub_lie_in_one_folder() -> None:
    assert config.compose(["prompts=vlm"], "caption").prompts.path == "captions/scenes-Qwen2.5-VL-3B-Instruct.jsonl"
    assert config.compose(["prompts=openai"], "caption").prompts.path == "captions/scenes-gpt-4o-2024-11-20.jsonl"


def test_composed_configurations_stay_as_they_are() -> None:
    cfg = config.compose(["seed=3"])
    assert OmegaConf.to_container(cfg, resolve=True)["seed"] == 3
