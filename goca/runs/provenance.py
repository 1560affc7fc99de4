"""Where numbers come from: versions, commit, machine and checkpoint."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goca.backbones.loading.weight_files import PICKLES
from goca.hub import repositories
from goca.hub.digests import file_digest
from goca.paths import PACKAGE
from goca.runs.machine import machine

if TYPE_CHECKING:
    from goca.backbones.loading.pretrained import Pretrained

TRAINING = "training.json"  # in the folder of a bundled backbone: how it was trained, and how well
SCHEME = 2  # of the hash: 1 covered what lay in the folder, 2 covers the content of what is read
_SHOWN_KEYS = 10
_PACKAGES = (
    "goca",
    "torch",
    "diffusers",
    "transformers",
    "huggingface-hub",
    "pytorch-lightning",
    "torchmetrics",
    "hydra-core",
    "wandb",
    "numpy",
)


def environment() -> dict[str, Any]:
    """Versions, commit and machine: what a reader needs to repeat the numbers."""
    return {
        "versions": {"python": platform.python_version(), **{package: _version(package) for package in _PACKAGES}},
        "commit": _commit(),
        "machine": machine(),
    }


def checkpoint_identity(backbone: Pretrained, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Which weights a run is computed with: the hub's commit, and a hash over the content of every file that is read.

    Args:
        backbone: loaded, or inspected.
        earlier: what `run.json` says of a run that is continued. Before scheme 2 the hash covered every file that lay in the
            folder; such a run keeps its hash if that, or the commit, is still the same.

    Returns:
        `checkpoint_revision`, `checkpoint_hash`, `checkpoint_hash_scheme`; where there are any, `lora` and `unexpected_keys`.
    """
    digests = backbone.file_digests()
    if digests is None:  # a pipeline that was handed over in memory
        return {"checkpoint_revision": backbone.revision, "checkpoint_hash": None, "checkpoint_hash_scheme": SCHEME}
    lines = "".join(f"{path} {digest}\n" for path, digest in sorted(digests.items()))
    facts: dict[str, Any] = {
        "checkpoint_revision": backbone.opened.commit or backbone.revision,
        "checkpoint_hash": hashlib.sha256(lines.encode()).hexdigest(),
        "checkpoint_hash_scheme": SCHEME,
    }
    if backbone.found_lora is not None:
        facts["lora"] = backbone.found_lora.facts
    if backbone.unexpected_keys:
        facts["unexpected_keys"] = {name: _shortened(keys) for name, keys in sorted(backbone.unexpected_keys.items())}
    if earlier and earlier.get("checkpoint_hash") and "checkpoint_hash_scheme" not in earlier:
        commit = backbone.opened.commit
        if commit is not None and commit == earlier.get("checkpoint_revision"):
            facts["checkpoint_hash"] = earlier["checkpoint_hash"]
        else:
            facts["checkpoint_hash"] = _hash_of_scheme_1(backbone.opened.fetch([]))
        del facts["checkpoint_hash_scheme"]
    return facts


def keep_commits(backbone: Pretrained, earlier: Mapping[str, Any]) -> None:
    """Have a run that is continued read the commits it was begun with, wherever their branches have moved to."""
    lora = earlier.get("lora") or {}
    for text, revision, commit in (
        (backbone.checkpoint, backbone.revision, earlier.get("checkpoint_revision")),
        (lora.get("repository"), lora.get("asked_for"), lora.get("revision")),
    ):
        if text and repositories.is_commit(commit) and not Path(text).is_dir():
            repositories.pin(text, revision, str(commit))


def same_weights(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two runs' facts speak of the same weights; hashes of different schemes are replaced by the hub's commit."""
    if before.get("checkpoint_hash_scheme") == now.get("checkpoint_hash_scheme"):
        return bool(before.get("checkpoint_hash") == now.get("checkpoint_hash"))
    commit = before.get("checkpoint_revision")
    return repositories.is_commit(commit) and commit == now.get("checkpoint_revision")


def _hash_of_scheme_1(folder: Path) -> str:
    """Over every weight and configuration that lies in a folder, read or not."""
    total = hashlib.sha256()
    read = (".safetensors", ".json", *PICKLES)
    files = [file for file in folder.rglob("*") if file.suffix in read and file.is_file()]
    for file in sorted(file for file in files if file != folder / TRAINING):  # only a report
        total.update(f"{file.relative_to(folder).as_posix()} {file_digest(file)}\n".encode())
    return total.hexdigest()


def _shortened(keys: Sequence[str]) -> list[str]:
    """The first keys, and how many more there are."""
    return [*keys[:_SHOWN_KEYS], *([f"and {len(keys) - _SHOWN_KEYS} more"] if len(keys) > _SHOWN_KEYS else [])]


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
