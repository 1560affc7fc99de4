"""How a command answers at once: its configuration is composed before anything is imported that takes seconds."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import NoReturn

import hydra
from omegaconf import DictConfig

from goca.config import command
from goca.paths import CONF


def start(module: str, config_name: str) -> NoReturn:
    """Run `main(cfg)` of a module as a command, and exit.

    A command's module calls this above its other imports where it is run as `python -m`. `--help`, `--cfg` and mistakes in the
    configuration then never reach those imports; otherwise Hydra's job imports the module under its own name.
    """

    def main(cfg: DictConfig) -> object:
        return import_module(module).main(cfg)

    main.__module__ = module  # what Hydra names the job after
    command(hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(main), config_name)
    sys.exit()
