"""Networks without weights: built on the meta device from published configurations or from a checkpoint's own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
import yaml
from torch import nn

_FACTS = Path(__file__).with_name("architectures.yaml")


@cache
def published() -> Mapping[str, Any]:
    """What is known of each checkpoint: the class of its pipeline, and class and configuration of its components."""
    checkpoints: Mapping[str, Any] = yaml.safe_load(_FACTS.read_text())["checkpoints"]
    return checkpoints


def on_meta(kind: Any, config: Mapping[str, Any]) -> nn.Module:
    """A diffusers or transformers network that takes no memory."""
    with torch.device("meta"):
        network: nn.Module = (
            kind(kind.config_class(**config)) if hasattr(kind, "config_class") else kind.from_config(dict(config))
        )
    return network.to("meta")  # tables that the constructor made by other means


def skeleton(checkpoint: str) -> Any:
    """The pipeline of a published checkpoint: denoiser and autoencoder on the meta device, no tokenizers, no text encoders."""
    facts = published()[checkpoint]
    kind = getattr(diffusers, facts["pipeline"])
    components: dict[str, Any] = {}
    for name, part in facts["components"].items():
        if not name.startswith("text_encoder"):
            part_kind = getattr(diffusers, part["class"])
            components[name] = part_kind(**part["config"]) if name == "scheduler" else on_meta(part_kind, part["config"])
    names = [name for name in inspect.signature(kind.__init__).parameters if name in _component_names(kind)]
    options = {"requires_safety_checker": False} if "requires_safety_checker" in kind.__init__.__code__.co_varnames else {}
    return kind(**{**dict.fromkeys(names), **components, **options})


def parameters(checkpoint: str) -> dict[str, int]:
    """Number of parameters of every component of a published checkpoint."""
    counts = {}
    for name, part in published()[checkpoint]["components"].items():
        if name != "scheduler":
            library = transformers if name.startswith("text_encoder") else diffusers
            network = on_meta(getattr(library, part["class"]), part["config"])
            counts[name] = sum(parameter.numel() for parameter in network.parameters())
    return counts


def _component_names(kind: Any) -> set[str]:
    required, _ = kind._get_signature_keys(kind)
    return set(required)
