"""What the tests know of a family: its adapter, a small pipeline of its real classes, and how it treats text."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers

from goca.backbones.base import Backbone
from goca.layer_names import LayerNames
from tests.helpers.tiny_unet import VAE

DEPTH = 3
CROSS = LayerNames(cross=("*attn2",), manual=("*.1.attn2",), reference="*.1.attn2", affinity=("*.0.attn1", "*.1.attn1"))
JOINT = LayerNames(
    cross=("*attn",), manual=("*.1.attn",), reference="transformer_blocks.1.attn", affinity=("*.0.attn", "*.1.attn")
)
DOUBLE_AND_SINGLE = LayerNames(**{**JOINT.__dict__, "reference": "single_transformer_blocks.0.attn", "feature": "output"})


@dataclass(frozen=True)
class Family:
    """A row of the family tests.

    Args:
        layers: of the small model.
        settings: the backbone's own ones that differ for it.
        model: its config in `conf/model`; empty: named as the family.
        masked: padding gets no attention.
        causal: tokens of the text know those before them alone, so that a changed word shows where it lies.
        refined: names of block lists that mix the text before the image meets it.
    """

    adapter: type[Backbone]
    pipeline: Callable[[], Any]
    layers: LayerNames
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    masked: bool = False
    causal: bool = False
    refined: tuple[str, ...] = ()


def vae(channels: int = 4, **options: Any) -> diffusers.AutoencoderKL:
    """A small autoencoder that halves an image's sides."""
    return diffusers.AutoencoderKL(**{**VAE, "latent_channels": channels, **options})


def flow(**options: Any) -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)
