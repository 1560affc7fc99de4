"""Loading diffusers pipelines: safetensors only, never remote code, and one clear message for each way it can fail."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import errors as hub

from goca.errors import ModelError

log = logging.getLogger(__name__)


def choose_device(device: str) -> torch.device:
    """`auto` is the first accelerator, else the CPU; anything else has to exist.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device == "auto":
        return accelerator or torch.device("cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"model.device: '{device}' is no device name; use auto, cpu, cuda, cuda:1, mps ...") from error
    if chosen.type != "cpu" and (accelerator is None or accelerator.type != chosen.type):
        raise ModelError(f"model.device: '{device}' is not on this machine; there is {accelerator or 'only the cpu'}")
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is float32 on the CPU and a half type elsewhere; a type that the device lacks is refused."""
    half = torch.float16
    if device.type != "cuda" or torch.cuda.is_bf16_supported():
        half = torch.bfloat16
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else half
    chosen: torch.dtype = getattr(torch, dtype)
    if device.type == "cpu" and chosen == torch.float16:
        raise ModelError("model.dtype: float16 is not usable on the cpu; use float32, or bfloat16 for speed")
    if chosen == torch.bfloat16 and half != torch.bfloat16:
        raise ModelError(f"model.dtype: this {device.type} device has no bfloat16; use float16 or float32")
    return chosen


def load_pipeline(
    checkpoint: str,
    dtype: torch.dtype,
    families: Sequence[str],
    unused: Sequence[str] = (),
    revision: str | None = None,
    variant: str | None = None,
    lora: str | None = None,
) -> Any:
    """A diffusers pipeline from a hub id or a local folder.

    Args:
        checkpoint: `owner/name` on the hub, or a folder that holds `model_index.json`.
        dtype: of all components.
        families: pipeline classes the caller understands; checked before any weight is read.
        unused: optional components to leave out.
        revision, variant: as in `DiffusionPipeline.from_pretrained`.
        lora: LoRA weights to fuse into the denoiser and the text encoder.

    Raises:
        ModelError: with what to change.
    """
    index = _model_index(checkpoint, revision)
    kind = index.get("_class_name", "?")
    if families and kind not in families:
        raise ModelError(
            f"model.checkpoint: {checkpoint} is a {kind}; this model config takes {' or '.join(families)}. "
            "Choose the model=... config of its family"
        )
    if Path(checkpoint).is_dir():
        _check_components(Path(checkpoint), index, unused, variant)
    left_out = {name: None for name in unused if name in index}
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            checkpoint, dtype=dtype, use_safetensors=True, revision=revision, variant=variant, **left_out
        )
        if lora:
            pipeline.load_lora_weights(lora, use_safetensors=True)
            pipeline.fuse_lora()
            pipeline.unload_lora_weights()
    except (OSError, ValueError, hub.HfHubHTTPError) as error:
        raise ModelError(f"model.checkpoint: {lora or checkpoint} could not be loaded: {_first_line(error)}") from error
    return pipeline


def _model_index(checkpoint: str, revision: str | None) -> dict[str, Any]:
    """The pipeline's index; fetching it is cheap and fails for the same reasons that loading would."""
    path = Path(checkpoint)
    if path.is_file() or path.suffix in (".ckpt", ".bin", ".pt", ".pth"):
        raise ModelError(
            f"model.checkpoint: {checkpoint} is a single file; give a diffusers folder (a single-file checkpoint can be converted "
            "with diffusers' from_single_file and save_pretrained)"
        )
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


def _check_components(folder: Path, index: dict[str, Any], unused: Sequence[str], variant: str | None) -> None:
    """Every component of a local folder is there, and every network has safetensors; otherwise say which has not."""
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, (list, tuple)) or entry[0] is None or name in unused:
            continue
        component = folder / name
        if not component.is_dir():
            raise ModelError(f"model.checkpoint: {folder} lacks its component '{name}' ({entry[1]})")
        pickled = [file for suffix in ("*.bin", "*.ckpt", "*.pt") for file in component.glob(suffix)]
        pattern = f"*.{variant}*.safetensors" if variant else "*.safetensors"
        if (pickled or (component / "config.json").is_file()) and not any(component.glob(pattern)):
            found = pickled[0].name if pickled else "no weights"
            raise ModelError(
                f"model.checkpoint: {component.name} of {folder} has {found} but no {pattern}; only safetensors are read. "
                "Save the pipeline again with save_pretrained(..., safe_serialization=True)"
            )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
