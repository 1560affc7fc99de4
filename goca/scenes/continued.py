"""A training that was interrupted is continued by the same command. Another one neither continues nor replaces it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from goca import config
from goca.config.identity import decisive, difference
from goca.errors import ConfigError

FILE = "training.yaml"
REPORT = "training.json"  # beside a finished pipeline
# Where things lie and how the work is spread.
_FREE = ("work", "latents", "output", "paths", "devices", "threads", "accelerator", "compile", "wandb", "vae", "hydra",
         "start", "save_every")  # fmt: skip
_ELSEWHERE = "Give output=DIR another folder, or remove that one"


def settle(cfg: DictConfig, work: Path) -> dict[str, Any]:
    """Write down what this training is, or check that it is the one that `work` holds.

    Returns:
        by dotted names the settings that decide about the weights.

    Raises:
        ConfigError: the folder holds a training of other settings; the message names them.
    """
    settings = {**config.plain(cfg), "autoencoder": _hash_of(cfg.vae), "started_from": _hash_of(cfg.start, "*")}
    file = work / FILE
    if not file.is_file():
        work.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        return decisive(settings, _FREE)
    changed = difference(yaml.safe_load(file.read_text(encoding="utf-8")), settings, _FREE)
    if changed:
        raise ConfigError(
            f"{work} holds a training of other settings, which cannot be continued with these:\n{_lines(changed)}"
            "\nGive the settings it was begun with, or work=DIR and output=DIR other folders"
        )
    return decisive(settings, _FREE)


def identity(cfg: DictConfig) -> dict[str, Any]:
    """What `training.json` says about which training a pipeline is of, beside all of its settings."""
    return {
        "seed": cfg.seed,
        "scenes": cfg.scenes,
        "look": cfg.look,
        "started_from": Path(cfg.start).name if cfg.start else None,
        "planned_steps": cfg.backbone.denoiser.steps,
        "batch": cfg.backbone.denoiser.batch,
    }


def keep_others(cfg: DictConfig, settings: Mapping[str, Any], folder: Path) -> None:
    """Check that this training replaces no pipeline of another one.

    Args:
        settings: what `settle` returned.
        folder: where the pipeline is to go.

    Raises:
        ConfigError: `training.json` in that folder names another training, or cannot be read.
    """
    file = folder / REPORT
    if not file.is_file():
        return
    try:
        found = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read, so that {folder} may hold another training; {_ELSEWHERE}") from error
    if "settings" in found:
        changed = difference(found["settings"], settings, _FREE)
    else:  # of an earlier version, which noted less, and the earliest still less
        changed = {key: (found[key], now) for key, now in identity(cfg).items() if key in found and found[key] != now}
    if changed:
        raise ConfigError(
            f"{folder} holds the pipeline of another training, which this one would replace:\n{_lines(changed)}\n{_ELSEWHERE}"
        )


def _lines(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return "\n".join(f"  {key}: {before} -> {now}" for key, (before, now) in changed.items())


def _hash_of(pipeline: Any, part: str = "vae") -> str | None:
    """Hash of the weights of one part of a pipeline folder, or of all (`*`); None where no folder is given."""
    if pipeline is None:
        return None
    digest = hashlib.sha256()
    for file in sorted(Path(pipeline).glob(f"{part}/*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
