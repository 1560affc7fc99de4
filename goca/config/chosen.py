"""Command line beats preset, for whole groups too: `preset=cliper refinement=pamr` refines by PAMR.

Hydra merges a preset's own keys over the option that a group has, so that `refinement.steps` of the preset would stay and the
option chosen on the command line would change nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from omegaconf import DictConfig, OmegaConf, open_dict

from goca.errors import ConfigError

log = logging.getLogger(__name__)

# Sections of which presets and experiments say something by key.
GROUPS = ("prompts", "aggregation", "calibration", "refinement", "decision", "views", "passes", "sizing")


def prefer_chosen(
    cfg: DictConfig, overrides: Sequence[str], choices: Mapping[str, str | None], compose: Callable[[list[str]], DictConfig]
) -> None:
    """Make sections whose option was chosen on the command line what they are without a preset or an experiment.

    Args:
        cfg: as composed; changed in place.
        overrides: of the command line.
        choices: group -> option of everything that was composed.
        compose: composes the same primary configuration with other overrides.

    Raises:
        ConfigError: a noise level of the model where the method has levels of its own.
    """
    names = [override.lstrip("+~").partition("=")[0] for override in overrides]
    if "model.timestep" in names and OmegaConf.select(cfg, "passes.timesteps"):
        own = list(cfg.passes.timesteps)
        raise ConfigError(f"model.timestep: this method has noise levels of its own, {own}; set passes.timesteps=[...] instead")
    groups = [name for name in GROUPS if name in names and name in cfg]
    if not groups or (choices.get("preset") in (None, "none") and "experiment" not in names):
        return
    own_sections = [o for o, name in zip(overrides, names, strict=True) if name.partition(".")[0] in groups]
    alone = compose([*own_sections, *(["preset=none"] if "preset" in choices else [])])
    for group in groups:
        before, now = (OmegaConf.to_container(part[group], resolve=False) for part in (cfg, alone))
        if before != now:
            log.warning("%s is as chosen on the command line; what the preset says of it is left out", group)
            with open_dict(cfg):
                cfg[group] = alone[group]
