"""Loading diffusers pipelines: never remote code, safetensors unless pickles are allowed, one clear message per failure."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import apply_group_offloading
from torch import nn

from goca.backbones.loading import architectures
from goca.backbones.loading.checkpoints import Source, check_source, explained, is_text_encoder, networks
from goca.backbones.loading.quantization import Quantization, quantization_config
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
        _fuse_lora(pipeline, source, without_encoders)
    return pipeline


def load_text_encoders(source: Source, dtype: torch.dtype, quantization: Quantization | None = None) -> dict[str, nn.Module]:
    """The text encoders alone, by component name."""
    index = check_source(source)
    others = {name: None for name in networks(index) if not is_text_encoder(name)}
    pipeline = _from_pretrained(source, index, others, dtype, quantization)
    encoders = {name: getattr(pipeline, name) for name in index if is_text_encoder(name)}
    return {name: encoder for name, encoder in encoders.items() if encoder is not None}


def load_skeleton(source: Source) -> Any:
    """The pipeline with real scheduler and tokenizers, denoiser and autoencoder on the meta device, without text encoders."""
    index = check_source(source)
    replaced: dict[str, Any] = dict.fromkeys((*source.unused, *filter(is_text_encoder, index)))
    with explained(source):
        for name in networks(index):
            if name not in replaced:
                kind = getattr(diffusers, index[name][1])
                config = kind.load_config(source.checkpoint, subfolder=name, revision=source.revision)
                replaced[name] = architectures.build(kind, config)
    return _from_pretrained(source, index, {name: value for name, value in replaced.items() if name in index})


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
    options |= {"use_safetensors": source.use_safetensors, "revision": source.revision, "variant": source.variant}
    with explained(source):
        return DiffusionPipeline.from_pretrained(source.checkpoint, dtype=dtype, **options)


def _fuse_lora(pipeline: Any, source: Source, without_encoders: bool) -> None:
    with explained(replace(source, checkpoint=str(source.lora)), "model.lora"):
        if without_encoders:
            state = pipeline.lora_state_dict(source.lora, use_safetensors=source.use_safetensors)
            names = state[0] if isinstance(state, tuple) else state
            if any(is_text_encoder(name) for name in names):
                raise ValueError("it changes the text encoder too, which needs model.text_encoders=resident")
        try:
            pipeline.load_lora_weights(source.lora, use_safetensors=source.use_safetensors)
        except (LookupError, RuntimeError) as error:  # of other layers, or of the same ones in another size
            raise ValueError(f"its weights do not fit this model ({' '.join(str(error).split())[:200]})") from error
        changed = [name for name, part in pipeline.components.items() if getattr(part, "peft_config", None)]
        if not changed:
            raise ValueError("none of its weights belong to a layer of this model")
        pipeline.fuse_lora(changed)  # named, as FLUX's pipeline would leave its text encoder out
        pipeline.unload_lora_weights()


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
