"""Loading diffusers pipelines: never remote code, safetensors unless pickles are allowed, one clear message per failure."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

from goca.backbones.loading.checkpoints import Checkpoint, explained
from goca.backbones.loading.components import describe_broken, read_from_file, read_network, read_plain, read_skeleton
from goca.backbones.loading.lora import Lora, fuse_lora
from goca.backbones.loading.quantization import Quantization
from goca.backbones.loading.weight_files import is_network, is_text_encoder, names_component
from goca.errors import ModelError
from goca.ops import SLOW_HALF, slow_half

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
        raise ModelError(f"model.device: '{device}' is not a device name; use auto, cpu, cuda, cuda:1, mps ...") from error
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
        raise ModelError("model.dtype: float16 is not usable on the cpu; use float32, or bfloat16 for half the memory")
    if chosen == torch.bfloat16 and half != torch.bfloat16:
        raise ModelError(f"model.dtype: this {device.type} device has no bfloat16; use float16 or float32")
    if slow_half(chosen, device.type):
        log.warning("model.dtype: %s", SLOW_HALF)
    return chosen


def load_pipeline(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    without_encoders: bool = False,
    lora: Lora | None = None,
) -> tuple[Any, dict[str, list[str]]]:
    """A diffusers pipeline with its weights, those of the text encoders only if they are wanted.

    Returns:
        the pipeline, and by component the keys of its files that belong to no weight.

    Raises:
        ModelError: with what to change.
    """
    names = [name for name in checkpoint.components if not (without_encoders and is_text_encoder(name))]
    components, unexpected = _read(checkpoint, names, dtype, quantization)
    pipeline = _assemble(checkpoint, components)
    if lora is not None:
        source = checkpoint.source
        fuse_lora(pipeline, lora, str(source.lora), source.allow_pickle, without_encoders)
    return pipeline, unexpected


def load_text_encoders(
    checkpoint: Checkpoint, dtype: torch.dtype, quantization: Quantization | None = None
) -> tuple[dict[str, nn.Module], dict[str, list[str]]]:
    """The text encoders alone, by component name, and keys of their files that belong to no weight."""
    return _read(checkpoint, [name for name in checkpoint.components if is_text_encoder(name)], dtype, quantization)


def load_skeleton(checkpoint: Checkpoint) -> Any:
    """The pipeline with real scheduler and tokenizers, denoiser and autoencoder on the meta device, without text encoders."""
    names = [name for name in checkpoint.components if not is_text_encoder(name)]
    parts = checkpoint.parts(names, weights=False)
    with checkpoint.view(parts.values()) as folder:
        components = {
            name: read_skeleton(part, folder) if is_network(name) else read_plain(part, folder) for name, part in parts.items()
        }
    return _assemble(checkpoint, components)


def _read(
    checkpoint: Checkpoint, names: Sequence[str], dtype: torch.dtype, quantization: Quantization | None
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Components with their weights; every file is here before the first is read."""
    parts = checkpoint.parts(names)
    components: dict[str, Any] = {}
    unexpected: dict[str, list[str]] = {}
    with checkpoint.view(parts.values()) as folder:
        for name, part in parts.items():
            wanted = quantization if name in checkpoint.source.quantized else None
            if checkpoint.file is not None and checkpoint.from_file(name):
                components[name] = read_from_file(part, folder, checkpoint.file, dtype, wanted)
                continue
            if part.weights is None:
                components[name] = read_plain(part, folder)
                continue
            try:
                components[name], keys = read_network(part, folder, dtype, wanted)
            except ModelError as error:
                raise describe_broken(checkpoint, part, error) from error
            if keys:
                unexpected[name] = keys
    return components, unexpected


def _assemble(checkpoint: Checkpoint, components: Mapping[str, Any]) -> Any:
    """The pipeline around components that are there; those that are not stay empty."""
    name = checkpoint.index.get("_class_name", "?")
    kind: Any = getattr(diffusers, name, None)
    if kind is None:
        raise ModelError(f"model.checkpoint: {checkpoint.source.checkpoint} is a {name}, which diffusers, as installed, lacks")
    required, optional = kind._get_signature_keys(kind)
    settings = {key: value for key, value in checkpoint.index.items() if key in optional and not names_component(value)}
    if "requires_safety_checker" in optional:
        settings["requires_safety_checker"] = False
    with explained(checkpoint.source.checkpoint):
        return kind(**{**dict.fromkeys(required), **components, **settings})


def place(what: Any, device: torch.device, dtype: torch.dtype, placement: str) -> None:
    """Put a pipeline, or one network, where it runs, ready for inference.

    Offloaded, the denoiser comes to the device block by block, text encoders layer by layer; the small autoencoder stays there.
    """
    parts = [what] if isinstance(what, nn.Module) else what.components.values()
    modules: list[Any] = [part for part in parts if isinstance(part, nn.Module)]
    for network in modules:
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


def free_memory() -> None:
    """Give back what is no longer referenced."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
