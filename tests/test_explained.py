"""Every key of every command is explained: in --help and on the page of all keys."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from goca.config.explained import comments, explanations, parameters
from goca.config.settings import SETTINGS
from goca.paths import CONF


def _leaves(content, prefix=""):
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        elif not name.startswith("_"):  # _target_ and the like are Hydra's
            yield f"{prefix}{name}"


def _explained(config_name, overrides=()):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(config_name, overrides=list(overrides), return_hydra_config=True)
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    plain = OmegaConf.to_container(cfg, resolve=False)
    del plain["hydra"]
    return plain, explanations(plain, config_name, choices, [CONF])


def _unexplained(plain, found):
    """Keys that neither have an explanation of their own nor lie in a section that has one."""
    parts = {key: key.split(".") for key in _leaves(plain)}
    return [key for key, names in parts.items() if found.keys().isdisjoint(".".join(names[: n + 1]) for n in range(len(names)))]


@pytest.mark.parametrize("config_name", SETTINGS)
def test_every_key_of_a_command_is_explained(config_name):
    plain, found = _explained(config_name)
    assert _unexplained(plain, found) == []


def test_comments_of_a_users_folder_come_first(tmp_path):
    (tmp_path / "decision").mkdir()
    (tmp_path / "decision" / "mine.yaml").write_text("# Ours.\ndefaults:\n  - offset\nrule: offset  # ours\n")
    found = explanations({}, "config", {"decision": "mine"}, [tmp_path, CONF])
    assert found["decision.rule"] == "ours"
    assert found["decision.ties"].startswith("class: who wins")


def test_a_comment_with_lines_that_go_on_and_one_above():
    text = "# what the file is\n\na: 1  # one\n      # goes on\n# of b\nb: '# none'\nc: |-\n  # text\nd: {e: 1}  # of d\n"
    assert comments(text) == {"a": "one goes on", "b": "of b", "d": "of d"}


def test_parameters_are_inherited_and_nested():
    found = parameters("goca.backbones.unet.UNetBackbone")
    assert "hub" in found["checkpoint"]
    assert "square" in found["size"]
    assert "text" in found["layers.cross"]
    assert parameters("not.a.package.Class") == {}
