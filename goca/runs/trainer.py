"""Lightning's Trainer without what only training needs."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from goca import config
from goca.backbones.loading.pipelines import choose_device
from goca.errors import ConfigError


def make_trainer(cfg: DictConfig) -> pl.Trainer:
    """The trainer of a run, from the sections `trainer` and `model` of its configuration.

    Raises:
        ConfigError: several devices inside a sweep: Lightning would start the whole sweep once more for each.
    """
    device = choose_device(cfg.model.device)
    try:
        trainer = pl.Trainer(
            accelerator="cpu" if device.type == "cpu" else "auto",
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,  # ours is a callback
            use_distributed_sampler=False,  # the data module hands out batches itself: whole, and none twice
            **{key: value for key, value in config.plain(cfg.trainer).items() if key != "enable_progress_bar"},
        )
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN and _starts_processes(trainer):
        raise ConfigError(
            f"trainer.devices={trainer.num_devices} does not work with -m outside SLURM; use one device, or no sweep"
        )
    if trainer.world_size > 1 and device.type != "cpu":
        torch.accelerator.set_device_index(trainer.strategy.root_device.index)
    return trainer


def _starts_processes(trainer: pl.Trainer) -> bool:
    environment = getattr(trainer.strategy.launcher, "cluster_environment", None)
    return trainer.num_devices > 1 and environment is not None and not environment.creates_processes_externally
