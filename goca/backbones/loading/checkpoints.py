"""What a checkpoint is, told from its index and its file names: no weight is read here, and no pickle is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from huggingface_hub import errors as hub
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError

from goca.errors import ModelError

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
ALLOW = "if you trust where it comes from, set model.allow_pickle=true"


@dataclass(frozen=True)
class Source:
    """Where a pipeline comes from and what is wanted of it.

    Args:
        checkpoint: `owner/name` on the hub, or a folder that holds `model_index.json`.
        families: pipeline classes the caller understands; checked before any weight is read.
        unused: optional components to leave out.
        quantized: components that quantisation is for.
        revision, variant: as in `DiffusionPipeline.from_pretrained`.
        lora: LoRA weights to fuse into the denoiser and the text encoder.
        allow_pickle: take pickled weights where there are no safetensors.
    """

    checkpoint: str
    families: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    quantized: tuple[str, ...] = ()
    revision: str | None = None
    variant: str | None = None
    lora: str | None = None
    allow_pickle: bool = False

    @property
    def use_safetensors(self) -> bool | None:
        """What diffusers takes: nothing else, or (None) pickles as well, which it then reads as plain tensors only."""
        return None if self.allow_pickle else True


def check_source(source: Source) -> dict[str, Any]:
    """The pipeline's index, after checking that it is of a known family and, in a local folder, complete.

    Raises:
        ModelError: with what to change.
    """
    _refuse_single_file(source)
    index = _model_index(source.checkpoint, source.revision)
    kind = index.get("_class_name", "?")
    if source.families and kind not in source.families:
        raise ModelError(
            f"model.checkpoint: {source.checkpoint} is a {kind}; this model config takes {' or '.join(source.families)}. "
            "Choose the model=... config of its family, or model=auto"
        )
    if source.lora and not hasattr(getattr(diffusers, kind, None), "load_lora_weights"):
        raise ModelError(f"model.lora: diffusers' {kind} takes no LoRA weights; leave model.lora out")
    if Path(source.checkpoint).is_dir():
        _check_components(Path(source.checkpoint), index, source)
    return index


def is_text_encoder(component: str) -> bool:
    return component.startswith("text_encoder")


def networks(index: Mapping[str, Any]) -> list[str]:
    """Components that hold weights."""
    other = ("tokenizer", "scheduler", "feature_extractor", "image_processor")
    components = [name for name, entry in index.items() if isinstance(entry, (list, tuple)) and entry[0]]
    return [name for name in components if not name.startswith(other)]


def resolved_revision(checkpoint: str, revision: str | None) -> str:
    """What tells two states of a checkpoint apart: the commit of a hub id, the files of a folder."""
    folder = Path(checkpoint)
    if folder.is_dir():
        text = [part for part in folder.iterdir() if part.name.startswith(("text_encoder", "tokenizer"))]
        files = sorted(file for part in text for file in part.rglob("*") if file.is_file())
        return " ".join(f"{file.relative_to(folder)}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)
    cached = try_to_load_from_cache(checkpoint, "model_index.json", revision=revision) if checkpoint.count("/") == 1 else None
    return Path(cached).parent.name if isinstance(cached, str) else str(revision)


@contextmanager
def explained(source: Source, key: str = "model.checkpoint") -> Iterator[None]:
    """What loading raises, as one message that names the key and the checkpoint."""
    try:
        yield
    except (OSError, ValueError, AttributeError, hub.HfHubHTTPError, SafetensorError, UnpicklingError) as error:
        line = _first_line(error)
        hint = f"; {ALLOW}" if "safetensors" in line and not source.allow_pickle else ""
        raise ModelError(f"{key}: {source.checkpoint} could not be loaded: {line}{hint}") from error


def _refuse_single_file(source: Source) -> None:
    path = Path(source.checkpoint)
    if path.is_file() or path.suffix in PICKLES:
        kind = source.families[0] if source.families else "StableDiffusionPipeline"
        raise ModelError(
            f"model.checkpoint: {source.checkpoint} is a single file; give a diffusers folder. To convert it once: python -c "
            f'"import diffusers; diffusers.{kind}.from_single_file({path.name!r}).save_pretrained({path.stem!r})"'
        )


def _model_index(checkpoint: str, revision: str | None) -> dict[str, Any]:
    """The pipeline's index; fetching it is cheap and fails for the same reasons that loading would."""
    path = Path(checkpoint)
    if path.is_dir() and not (path / "model_index.json").is_file():
        raise ModelError(f"model.checkpoint: {checkpoint} holds no model_index.json, so it is no diffusers pipeline folder")
    looks_local = not path.is_dir() and (path.is_absolute() or checkpoint.startswith(".") or checkpoint.count("/") != 1)
    if looks_local:
        raise ModelError(f"model.checkpoint: there is no folder {checkpoint}; give a pipeline folder or a hub id (owner/name)")
    try:
        return dict(DiffusionPipeline.load_config(checkpoint, revision=revision))
    except hub.GatedRepoError as error:
        raise ModelError(
            f"model.checkpoint: {checkpoint} is gated: accept its terms on the hub's page, then log in with `hf auth login`"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise ModelError(f"model.revision: {checkpoint} has no revision '{revision}'") from error
    except (OSError, ValueError, hub.HfHubHTTPError, hub.HFValidationError) as error:
        raise ModelError(
            f"model.checkpoint: {checkpoint} is no local folder and could not be fetched from the hub ({_first_line(error)}). "
            "Check the name and the network, log in with `hf auth login` if it is private or gated, or give a local folder"
        ) from error


def _check_components(folder: Path, index: Mapping[str, Any], source: Source) -> None:
    """Every component of a local folder is there, and every network has weights that may be read; else say which has not."""
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, (list, tuple)) or entry[0] is None or name in source.unused:
            continue
        component = folder / name
        if not component.is_dir():
            raise ModelError(f"model.checkpoint: {folder} lacks its component '{name}' ({entry[1]})")
        pickled = [file for file in sorted(component.iterdir()) if file.suffix in PICKLES]
        if not pickled and not (component / "config.json").is_file():
            continue  # a tokenizer or a scheduler
        pattern = f"*.{source.variant}*.safetensors" if source.variant else "*.safetensors"
        if any(component.glob(pattern)) or (pickled and source.allow_pickle):
            continue
        found = pickled[0].name if pickled else "no weights"
        raise ModelError(
            f"model.checkpoint: {component.name} of {folder} has {found} but no {pattern}; only safetensors are read. "
            "Save the pipeline again with save_pretrained(..., safe_serialization=True)" + (f", or, {ALLOW}" if pickled else "")
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
