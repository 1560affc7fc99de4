"""Where numbers come from: versions, commit, machine and checkpoint."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from goca.backbones.loading.checkpoints import PICKLES
from goca.paths import PACKAGE
from goca.runs.machine import machine

TRAINING = "training.json"  # in the folder of a bundled backbone: how it was trained, and how well
_PACKAGES = ("goca", "torch", "diffusers", "transformers", "pytorch-lightning", "torchmetrics", "hydra-core", "wandb", "numpy")


def environment() -> dict[str, Any]:
    """Versions, commit and machine: what a reader needs to repeat the numbers."""
    return {
        "versions": {"python": platform.python_version(), **{package: _version(package) for package in _PACKAGES}},
        "commit": _commit(),
        "machine": machine(),
    }


def checkpoint_identity(checkpoint: str, revision: str | None = None) -> dict[str, str | None]:
    """The commit of a hub checkpoint, and a hash over the weights and configurations that were loaded.

    In the hub's cache a weight file is a link to a blob that is named by its SHA-256; other files are read.
    """
    folder = Path(checkpoint)
    commit = None
    if not folder.is_dir():
        is_hub_id = checkpoint.count("/") == 1
        cached = try_to_load_from_cache(checkpoint, "model_index.json", revision=revision) if is_hub_id else None
        if not isinstance(cached, str):
            return {"checkpoint_revision": revision, "checkpoint_hash": None}
        folder = Path(cached).parent
        commit = folder.name
    total = hashlib.sha256()
    read = (".safetensors", ".json", *PICKLES)
    files = [file for file in folder.rglob("*") if file.suffix in read and file.is_file()]
    for file in sorted(file for file in files if file != folder / TRAINING):  # a report, which nothing is loaded from
        total.update(f"{file.relative_to(folder).as_posix()} {_digest(file)}\n".encode())
    return {"checkpoint_revision": commit or revision, "checkpoint_hash": total.hexdigest()}


def generator_measures(checkpoint: str) -> dict[str, float]:
    """How well a local checkpoint generates, as far as its training.json says: quantity -> number.

    The loss is named by what the denoiser predicts, for losses of different targets have nothing in common.
    """
    try:
        report = json.loads((Path(checkpoint) / TRAINING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(report, dict):
        return {}
    loss = f"held_out_loss_{report.get('predicts')}"
    measures = {"scenes_distance": report.get("scenes_distance"), loss: report.get("held_out_loss")}
    return {name: float(value) for name, value in measures.items() if isinstance(value, (int, float))}


def _digest(file: Path) -> str:
    blob = file.resolve()
    if file.is_symlink() and blob.parent.name == "blobs" and len(blob.name) == 64:
        return blob.name
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that is running, marked where files differ from it; None outside a checkout."""
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
