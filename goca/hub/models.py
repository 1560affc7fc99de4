"""Models of transformers that are named by hub id or folder: their files are had as those of a checkpoint are.

By itself transformers would fetch in silence, from whatever the branch stands for just then, and wait long where no network is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from goca.errors import ModelError
from goca.hub import repositories

_SETTINGS = (".json", ".txt", ".model", ".jinja")
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")


def model_folder(name: str, revision: str | None, key: str) -> Path:
    """The folder to give to `from_pretrained` with `local_files_only=True`; fetches what the cache lacks, and shows progress.

    Args:
        name: a folder, or a hub id.
        revision: branch, tag or commit; None for the main branch.
        key: setting that names the model, for messages.

    Returns:
        The folder as it is, or the cache's folder of one commit, with settings and safetensors weights.

    Raises:
        ModelError: it cannot be had, and why.
    """
    if Path(name).is_dir():
        return Path(name)
    found = repositories.listing(name, revision, key)
    wanted = _wanted(found.files)
    if not found.complete and not any(_WEIGHTS.fullmatch(file) for file in wanted):  # the cache holds a part of it
        found = repositories.listing(name, found.commit, key, complete=True)
        wanted = _wanted(found.files)
    if not any(_WEIGHTS.fullmatch(file) for file in wanted):
        raise ModelError(f"{key}: {name} has no model.safetensors; give a model whose weights are stored so, or a local folder")
    return repositories.fetch(name, found, wanted, key, revision)


def _wanted(files: Iterable[str]) -> list[str]:
    """Settings and weights at the root of a repository, without variants and other formats.

    >>> _wanted(["config.json", "model.safetensors", "model.fp16.safetensors", "onnx/config.json", "pytorch_model.bin"])
    ['config.json', 'model.safetensors']
    """
    return sorted(file for file in files if "/" not in file and (file.endswith(_SETTINGS) or _WEIGHTS.fullmatch(file)))
