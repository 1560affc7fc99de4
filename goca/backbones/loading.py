"""Loading diffusers pipelines: safetensors only, never remote code, and one clear message for each way it can fail."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import apply_group_offloading
from huggingface_hub import errors as hub
from huggingface_hub import try_to_load_from_cache
from torch import nn

from goca.backbones import architectures
from goca.backbones.quantization import Quantization, quantization_config
from goca.errors import ModelError


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
    """

    checkpoint: str
    families: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    quantized: tuple[str, ...] = ()
    revision: str | None = None
    variant: str | None = None
    lora: str | None = None


def load_pipeline(
    source: Source, dtype: torch.dtype, quantization: Quantization | None = None, without_encoders: bool = False
) -> Any:
    """A diffusers pipeline with its weights, those of the text encoders only if they are wanted.

    Raises:
        ModelError: with what to change.
    """
    index = check_source(source)
    left_out = {name: None for name in index if name in source.unused or (without_encoders and is_text_encoder(name))}
    pipeline = _from_pretrained(source, index, left_out, dtype, quantization)
    if source.lora:
        _fuse_lora(pipeline, source.lora)
    return pipeline


def load_text_encoders(source: Source, dtype: torch.dtype, quantization: Quantization | None = None) -> dict[str, nn.Module]:
    """The text encoders alone, by component name."""
    index = check_source(source)
    others = {name: None for name in _networks(index) if not is_text_encoder(name)}
    pipeline = _from_pretrained(source, index, others, dtype, quantization)
    encoders = {name: getattr(pipeline, name) for name in index if is_text_encoder(name)}
    return {name: encoder for name, encoder in encoders.items() if encoder is not None}


def load_skeleton(source: Source) -> Any:
    """The pipeline with real scheduler and tokenizers, denoiser and autoencoder on the meta device, without text encoders."""
    index = check_source(source)
    replaced: dict[str, Any] = dict.fromkeys((*source.unused, *filter(is_text_encoder, index)))
    with _explained(source):
        for name in _networks(index):
            if name not in replaced:
                kind = getattr(diffusers, index[name][1])
                config = kind.load_config(source.checkpoint, subfolder=name, revision=source.revision)
                replaced[name] = architectures.build(kind, config)
    return _from_pretrained(source, index, {name: value for name, value in replaced.items() if name in index})


def check_source(source: Source) -> dict[str, Any]:
    """The pipeline's index, after checking that it is of a known family and, in a local folder, complete."""
    index = _model_index(source.checkpoint, source.revision)
    kind = index.get("_class_name", "?")
    if source.families and kind not in source.families:
        raise ModelError(
            f"model.checkpoint: {source.checkpoint} is a {kind}; this model config takes {' or '.join(source.families)}. "
            "Choose the model=... config of its family, or model=auto"
        )
    if Path(source.checkpoint).is_dir():
        _check_components(Path(source.checkpoint), index, source.unused, source.variant)
    return index


def is_text_encoder(component: str) -> bool:
    return component.startswith("text_encoder")


def _networks(index: Mapping[str, Any]) -> list[str]:
    """Components that hold weights."""
    other = ("tokenizer", "scheduler", "feature_extractor", "image_processor")
    components = [name for name, entry in index.items() if isinstance(entry, (list, tuple)) and entry[0]]
    return [name for name in components if not name.startswith(other)]


def _from_pretrained(
    source: Source,
    index: Mapping[str, Any],
    replaced: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    quantization: Quantization | None = None,
) -> Any:
    absent = {name: None for name, entry in index.items() if entry == [None, None]}  # saved without, such as SD3 without T5
    options: dict[str, Any] = {**absent, **replaced}
    if quantization:
        wanted = [name for name in source.quantized if name not in options]
        options["quantization_config"] = quantization_config(quantization, wanted, dtype or torch.float32)
    with _explained(source):
        return DiffusionPipeline.from_pretrained(
            source.checkpoint, dtype=dtype, use_safetensors=True, revision=source.revision, variant=source.variant, **options
        )


def _fuse_lora(pipeline: Any, lora: str) -> None:
    with _explained(Source(lora)):
        pipeline.load_lora_weights(lora, use_safetensors=True)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()


@contextmanager
def _explained(source: Source) -> Iterator[None]:
    """What loading raises, as one message that names the checkpoint."""
    try:
        yield
    except (OSError, ValueError, AttributeError, hub.HfHubHTTPError) as error:
        raise ModelError(f"model.checkpoint: {source.checkpoint} could not be loaded: {_first_line(error)}") from error


def place(what: Any, device: torch.device, dtype: torch.dtype, placement: str) -> None:
    """Put a pipeline, or one network, where it runs, ready for inference.

    Offloaded, the denoiser comes to the device block by block, text encoders layer by layer; the small autoencoder stays there.
    """
    parts = [what] if isinstance(what, nn.Module) else what.components.values()
    networks: list[Any] = [part for part in parts if isinstance(part, nn.Module)]
    for network in networks:
        network.eval().requires_grad_(False)
        if getattr(network, "is_loaded_in_4bit", False) or getattr(network, "is_loaded_in_8bit", False):
            continue  # bitsandbytes has put its weights in place
        if getattr(network, "hf_quantizer", None) is None and next(network.parameters()).dtype != dtype:
            network.to(dtype)
        if placement == "device" or hasattr(network, "decoder"):
            network.to(device)
        else:
            blocks = {"offload_type": "block_level", "num_blocks_per_group": 1}
            leaves = {"offload_type": "leaf_level"}
            apply_group_offloading(network, device, **(blocks if isinstance(network, diffusers.ModelMixin) else leaves))


def resolved_revision(checkpoint: str, revision: str | None) -> str:
    """What tells two states of a checkpoint apart: the commit of a hub id, the files of a folder."""
    folder = Path(checkpoint)
    if folder.is_dir():
        text = [part for part in folder.iterdir() if part.name.startswith(("text_encoder", "tokenizer"))]
        files = sorted(file for part in text for file in part.rglob("*") if file.is_file())
        return " ".join(f"{file.relative_to(folder)}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)
    cached = try_to_load_from_cache(checkpoint, "model_index.json", revision=revision) if checkpoint.count("/") == 1 else None
    return Path(cached).parent.name if isinstance(cached, str) else str(revision)


def free_memory() -> None:
    """Give back what is no longer referenced."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _model_index(checkpoint: str, revision: str | None) -> dict[str, Any]:
    """The pipeline's index; fetching it is cheap and fails for the same reasons that loading would."""
    path = Path(checkpoint)
    if path.is_file() or path.suffix in (".ckpt", ".bin", ".pt", ".pth"):
        raise ModelError(
            f"model.checkpoint: {checkpoint} is a single file; give a diffusers folder (a single-file checkpoint can be "
            "converted with diffusers' from_single_file and save_pretrained)"
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
