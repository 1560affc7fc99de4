"""Weights from one file, as other programs keep them: a denoiser's, or a whole checkpoint's; read by diffusers' own loader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders import single_file_utils
from diffusers.loaders.single_file_model import FromOriginalModelMixin
from safetensors import SafetensorError, safe_open
from torch import nn

from goca.backbones.loading.weight_files import PICKLES
from goca.errors import ModelError, missing
from goca.hub.digests import file_digest
from goca.hub.network_errors import first_line

_GGUF = ".gguf"
_READ = (".safetensors", _GGUF)
_AUTOENCODER = "first_stage_model."
_ENCODERS = ("cond_stage_model.", "conditioner.embedders.", "text_encoders.")


@dataclass(frozen=True)
class SingleFile:
    """A file of weights; `open_single_file` makes one.

    Args:
        path: to a .safetensors or .gguf file.
        keys: the names of its tensors; empty for GGUF, which holds a denoiser alone.
    """

    path: Path
    keys: frozenset[str] = frozenset()

    @property
    def is_gguf(self) -> bool:
        """Whether its weights are in llama.cpp's quantised format."""
        return self.path.suffix == _GGUF

    @cached_property
    def digest(self) -> str:
        return file_digest(self.path)

    def holds(self, component: str, kind: str, denoiser: str) -> bool:
        """Whether the file has the weights of a component of that name and class."""
        if component == denoiser:
            return True
        if component == "vae":
            return any(key.startswith(_AUTOENCODER) for key in self.keys)
        if not component.startswith("text_encoder") or not any(key.startswith(_ENCODERS) for key in self.keys):
            return False
        tensors = dict.fromkeys(self.keys)
        if kind.startswith("CLIPTextModel"):
            return bool(single_file_utils.is_clip_model_in_single_file(getattr(transformers, kind), tensors))
        return kind == "T5EncoderModel" and bool(single_file_utils.is_t5_in_single_file(tensors))

    def read(self, kind: Any, folder: Path, component: str, dtype: torch.dtype, quantization: Any = None) -> nn.Module:
        """A component with the file's weights.

        Args:
            kind: its class.
            folder: of a pipeline, with the component's configuration in a folder of its name.
            quantization: a configuration of diffusers' that quantises it meanwhile.

        Raises:
            ModelError: diffusers reads no such file for this class.
        """
        where = {"config": str(folder), "subfolder": component, "local_files_only": True}
        if not issubclass(kind, diffusers.ModelMixin):
            tensors = single_file_utils.load_single_file_checkpoint(str(self.path), local_files_only=True)
            make = (
                single_file_utils.create_diffusers_t5_model_from_checkpoint
                if kind.__name__ == "T5EncoderModel"
                else single_file_utils.create_diffusers_clip_model_from_ldm
            )
            found: nn.Module = make(kind, checkpoint=tensors, torch_dtype=dtype, **where)
            return found
        if not issubclass(kind, FromOriginalModelMixin):
            raise ModelError(f"model.file: diffusers reads no single file for a {kind.__name__}; give a pipeline folder")
        if self.is_gguf:
            quantization = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
        options = {"quantization_config": quantization} if quantization is not None else {}
        network: nn.Module = kind.from_single_file(str(self.path), dtype=dtype, **where, **options)
        return network


def open_single_file(name: str) -> SingleFile:
    """The file that `model.file` names, its list of tensors read and nothing else.

    Raises:
        ModelError: there is none, it is of a kind that is not read, it is damaged, or the package that reads it is missing.
    """
    path = Path(name)
    if path.suffix not in _READ:
        pickled = "; pickles are not read: save it as .safetensors" if path.suffix in PICKLES else ""
        raise ModelError(f"model.file: {name} is no {' or '.join(_READ)} file{pickled}")
    if not path.is_file():
        raise ModelError(f"model.file: there is no file {name}")
    if path.suffix == _GGUF:
        if find_spec("gguf") is None:
            raise ModelError(missing("gguf", "gguf", f"model.file={name}"))
        if path.open("rb").read(4) != b"GGUF":
            raise ModelError(f"model.file: {name} is damaged, or no GGUF file")
        return SingleFile(path)
    try:
        with safe_open(path, framework="pt") as content:
            keys = frozenset(content.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"model.file: {name} is damaged ({first_line(error)[:90]}); fetch it again") from error
    if not keys:
        raise ModelError(f"model.file: {name} holds no weights")
    return SingleFile(path, keys)


def refuse_single_file(checkpoint: str, families: Sequence[str]) -> None:
    """A checkpoint is a folder or a repository.

    Raises:
        ModelError: it is a file; the message says what to do with it.
    """
    path = Path(checkpoint)
    if path.is_file() or path.suffix in PICKLES:
        kind = families[0] if families else "StableDiffusionPipeline"
        raise ModelError(
            f"model.checkpoint: {checkpoint} is a single file; give a diffusers folder. Safetensors and GGUF go as "
            "model.file. To convert it once: python -c "
            f'"import diffusers; diffusers.{kind}.from_single_file({path.name!r}).save_pretrained({path.stem!r})"'
        )
