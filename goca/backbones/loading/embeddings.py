"""Embeddings of prompts: the last ones in memory, and all of them on disk where a folder is given."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from goca.disk import replacing
from goca.errors import ModelError

Conditioning = Mapping[str, Tensor]  # arguments of the denoiser that come from the prompt; the batch is axis 0

_IN_MEMORY = 256
_MADE_BY = "encoders.json"


class PromptEmbeddings:
    """A mapping from prompt to `Conditioning`.

    Args:
        device: where embeddings are wanted.
        folder: keeps one safetensors file per prompt; None keeps them in memory alone.
        identity: whatever else determines an embedding: checkpoint, revision, dtype, lengths.

    >>> memory = PromptEmbeddings(torch.device("cpu"), None, "model")
    >>> memory["a cat"] = {"encoder_hidden_states": torch.zeros(1, 2, 3)}
    >>> "a cat" in memory, "a dog" in memory
    (True, False)
    """

    def __init__(self, device: torch.device, folder: str | None, identity: str) -> None:
        self._device = device
        self._folder = Path(folder).expanduser() / _digest(identity) if folder else None
        self._kept: OrderedDict[str, Conditioning] = OrderedDict()

    @property
    def on_disk(self) -> bool:
        return self._folder is not None

    def note(self, made_by: Mapping[str, str]) -> None:
        """Write down which files embeddings are made with: path -> SHA-256.

        Raises:
            ModelError: those that are there were made with others.
        """
        known = self.made_by()
        if known and known != dict(made_by):
            raise ModelError(f"model.prompt_cache: {self._folder} holds embeddings of other text encoders; delete this folder")
        if self._folder is not None and not known:
            with replacing(self._folder / _MADE_BY) as part:
                part.write_text(json.dumps(dict(made_by), indent=2) + "\n", encoding="utf-8")

    def made_by(self) -> dict[str, str] | None:
        """What `note` wrote, by this process or an earlier one."""
        if self._folder is None:
            return None
        try:
            return dict(json.loads((self._folder / _MADE_BY).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    def __contains__(self, text: str) -> bool:
        if text in self._kept:
            self._kept.move_to_end(text)  # it is about to be used: keep it in memory while others are encoded
        return text in self._kept or (self._folder is not None and self._file(text).is_file())

    def __getitem__(self, text: str) -> Conditioning:
        if text not in self._kept:
            self._keep(text, self._read(text))
        self._kept.move_to_end(text)
        return {key: tensor.to(self._device) for key, tensor in self._kept[text].items()}

    def __setitem__(self, text: str, conditioning: Conditioning) -> None:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = self._file(text)
            # Stopped half-way, a run leaves no half file under the final name; another process may be writing the same prompt.
            with replacing(file) as part:
                save_file({key: tensor.contiguous().cpu() for key, tensor in conditioning.items()}, part)
        self._keep(text, conditioning)

    def _read(self, text: str) -> dict[str, Tensor]:
        file = self._file(text)
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"model.prompt_cache: {file} is damaged ({error}); delete it and repeat the command") from error

    def _keep(self, text: str, conditioning: Conditioning) -> None:
        self._kept[text] = conditioning
        while len(self._kept) > _IN_MEMORY:
            self._kept.popitem(last=False)

    def _file(self, text: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{_digest(text)}.safetensors"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
