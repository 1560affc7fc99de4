"""Networks without weights: built on the meta device from published configurations or from a checkpoint's own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
import yaml
from torch import nn

from goca.backbones.loading.processors import TextProcessor

_FACTS = Path(__file__).with_name("architectures.yaml")


@cache
def published() -> Mapping[str, Any]:
    """What is known of each checkpoint: the class of its pipeline, and class and configuration of its components."""
    checkpoints: Mapping[str, Any] = yaml.safe_load(_FACTS.read_text())["checkpoints"]
    return checkpoints


def build(kind: Any, config: Mapping[str, Any], device: str = "meta") -> nn.Module:
    """A diffusers or transformers network with fresh weights, or on the meta device without memory for any."""
    with torch.device(device):
        network: nn.Module = (
            kind(kind.config_class(**config)) if hasattr(kind, "config_class") else kind.from_config(dict(config))
        )
    return network.to(device)  # also tensors that the constructor did not make on `device`


def skeleton(
    checkpoint: str, device: str = "meta", denoiser: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float32
) -> Any:
    """The pipeline of a published checkpoint: denoiser and autoencoder with fresh weights, no tokenizers, no text encoders.

    Args:
        checkpoint: a key of `published()`.
        device: where the weights are; on `meta` they take no memory.
        denoiser: values that replace those of the denoiser's configuration, for a narrower network of the same layers.
        dtype: of the weights, which are made in it: half precision needs no copy in full precision first.
    """
    facts = published()[checkpoint]
    kind = getattr(diffusers, facts["pipeline"])
    components: dict[str, Any] = {"scheduler": diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)}
    for name, part in facts["components"].items():
        if not name.startswith("text_encoder"):
            part_kind = getattr(diffusers, part["class"])
            config = {**part["config"], **(denoiser or {})} if name in ("unet", "transformer") else part["config"]
            components[name] = part_kind(**config) if name == "scheduler" else _made_in(dtype, part_kind, config, device)
    names = [name for name in inspect.signature(kind.__init__).parameters if name in _component_names(kind)]
    options = {"requires_safety_checker": False} if "requires_safety_checker" in kind.__init__.__code__.co_varnames else {}
    absent = dict.fromkeys(names) | ({"processor": TextProcessor()} if "processor" in names else {})
    return kind(**{**absent, **components, **options})


def _made_in(dtype: torch.dtype, kind: Any, config: Mapping[str, Any], device: str) -> nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        network = build(kind, config, device)
    finally:
        torch.set_default_dtype(before)
    for name, parameter in network.named_parameters():
        if name.endswith("pad_token") and not parameter.is_meta:  # Z-Image leaves these as they were in memory
            nn.init.normal_(parameter, std=0.02)
    return network


def _component_names(kind: Any) -> set[str]:
    required, _ = kind._get_signature_keys(kind)
    return set(required)
