"""Options of the configuration as a command would compose them, with the bases that they share."""

from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from goca import config


@cache
def _composed(group: str, name: str) -> str:
    return OmegaConf.to_yaml(config.compose([f"{group}={name}"])[group])


@cache
def _datasets() -> DictConfig:
    """Every data set at once: one composition takes as long as two of single ones."""
    return config.compose([f"+dataset@every.{name}={name}" for name in config.options("dataset")]).every


def option(group: str, name: str) -> DictConfig:
    """One option of a group; its references to other sections are not resolved."""
    text = OmegaConf.to_yaml(_datasets()[name]) if group == "dataset" else _composed(group, name)
    section: Any = OmegaConf.create(text)
    return section
