"""What the weights of a model take on the device, by placement; counted from the architecture."""

from __future__ import annotations

import json
from functools import cache

import diffusers
import transformers
from torch import nn

from goca.backbones.loading import architectures

HALF, INT8, NF4 = 2.0, 1.0, 0.5 + 4 / 64  # bytes per parameter; NF4 keeps a float32 scale for every 64


@cache
def _network(kind: str, settings: str) -> nn.Module:
    """A network on the meta device; models share text encoders and autoencoders, which are built once."""
    homes = (diffusers, transformers, diffusers.pipelines.kolors)
    found = next(getattr(home, kind) for home in homes if hasattr(home, kind))
    return architectures.build(found, json.loads(settings))


def _networks(checkpoint: str) -> dict[str, nn.Module]:
    parts = architectures.published()[checkpoint]["components"]
    return {name: _network(part["class"], json.dumps(part["config"])) for name, part in parts.items() if name != "scheduler"}


def parameters(checkpoint: str) -> dict[str, int]:
    """Number of parameters of every component of a published checkpoint."""
    return {name: _count(network) for name, network in _networks(checkpoint).items()}


def weights_memory(checkpoint: str, denoiser: str, large_encoder: str | None) -> dict[str, float]:
    """GiB of weights on the device in half precision, by how they are placed.

    Args:
        denoiser, large_encoder: the components that quantisation is for.

    Returns:
        `device`: everything; `text_encoders=first`: the larger of the text encoders and the rest; `offload`: the autoencoder,
        what of the denoiser lies outside its blocks, and its largest block; then `device` with quantised loading.
    """
    counts = parameters(checkpoint)
    encoders = sum(count for name, count in counts.items() if name.startswith("text_encoder"))
    networks = _networks(checkpoint)
    quantized = sum(_linear(networks[name]) for name in (denoiser, large_encoder) if name)
    rest = sum(counts.values()) - quantized
    resident, largest = _groups(networks[denoiser])
    gib = 2.0**30
    return {
        "device": HALF * sum(counts.values()) / gib,
        "text_encoders=first": HALF * max(encoders, sum(counts.values()) - encoders) / gib,
        "offload": HALF * (counts["vae"] + resident + largest) / gib,
        "torchao_int8": (HALF * rest + INT8 * quantized) / gib,
        "bitsandbytes_4bit": (HALF * rest + NF4 * quantized) / gib,
    }


def _groups(network: nn.Module) -> tuple[int, int]:
    """Parameters outside of any list of blocks, and those of the largest block: what block-level offloading moves at once."""
    blocks = [block for child in network.children() if isinstance(child, (nn.ModuleList, nn.Sequential)) for block in child]
    sizes = [_count(block) for block in blocks]
    return _count(network) - sum(sizes), max(sizes)


def _linear(network: nn.Module) -> int:
    """Parameters of linear layers' weights, the only ones that are quantised."""
    return sum(module.weight.numel() for module in network.modules() if isinstance(module, nn.Linear))


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
