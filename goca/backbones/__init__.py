"""Pretrained text-to-image pipelines as sources of attention: a small adapter per family."""

from typing import Any

from omegaconf import OmegaConf


def _auto_model(*arguments: Any) -> Any:
    from goca.backbones.auto import setting  # imports every adapter's base; only model=auto needs it

    return setting(*arguments)


OmegaConf.register_new_resolver("auto_model", _auto_model, replace=True)
