"""Options of the configuration as a command would compose them, with the bases that they share."""

from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from goca import config


@cache
def _composed(group: str, name: str) -> str:
    return OmegaConf.to_yaml(config.compose([f"{group}={name}"])[group])


def option(group: str, name: str) -> DictConfig:
    """One option of a group; its references to other sections are not resolved."""
    section: Any = OmegaConf.create(_composed(group, name))
    return section
