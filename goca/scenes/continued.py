"""A training that was interrupted is continued by the same command; by another one it is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from goca import config
from goca.config.identity import difference
from goca.errors import ConfigError

FILE = "training.yaml"
# Where things lie and how the work is spread.
_FREE = ("work", "latents", "output", "devices", "threads", "accelerator", "compile", "wandb", "vae", "hydra",
         "start", "save_every")  # fmt: skip


def settle(cfg: DictConfig, work: Path) -> None:
    """Write down what this training is, or check that it is the one that `work` holds.

    Raises:
        ConfigError: the folder holds a training of other settings; the message names them.
    """
    settings = {**config.plain(cfg), "autoencoder": _hash_of(cfg.vae), "started_from": _hash_of(cfg.start, "*")}
    file = work / FILE
    if not file.is_file():
        work.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        return
    changed = difference(yaml.safe_load(file.read_text(encoding="utf-8")), settings, _FREE)
    if changed:
        lines = [f"  {key}: {before} -> {now}" for key, (before, now) in changed.items()]
        raise ConfigError(
            f"{work} holds a training of other settings, which cannot be continued with these:\n"
            + "\n".join(lines)
            + "\nGive the settings it was begun with, or work=DIR another folder"
        )


def _hash_of(pipeline: Any, part: str = "vae") -> str | None:
    """Hash of the weights of one part of a pipeline folder, or of all (`*`); None where no folder is given."""
    if pipeline is None:
        return None
    digest = hashlib.sha256()
    for file in sorted(Path(pipeline).glob(f"{part}/*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
