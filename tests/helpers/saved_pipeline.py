"""A backbone around a small pipeline that was saved to disk, and what it sees."""

from typing import Any

import torch

from goca.attention.statistics import AttentionStatistics
from goca.backbones.base import Backbone
from goca.layer_names import LayerNames
from goca.method import plan_layers
from goca.method.aggregation import Aggregation
from tests.helpers.tiny_pipelines import tiny_backbone

TEXTS = ["circle, grass", "a heart on snow"]


def backbone(checkpoint: Any, **options: Any) -> Backbone:
    """Not loaded yet."""
    return tiny_backbone("flux_dev", checkpoint=str(checkpoint), **options)


def goca_aggregation(backbone: Backbone) -> Aggregation:
    """GoCA's aggregation over the backbone's own layers."""
    return Aggregation(
        heads="dot_product",
        layers="dot_product",
        cross_layers=backbone.layers.cross,
        reference=backbone.layers.reference,
        feature_size=16,
    )


def seen(backbone: Backbone) -> torch.Tensor:
    """Token maps of two fixed images and prompts."""
    aggregation = goca_aggregation(backbone)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    statistics = AttentionStatistics(aggregation, plan_layers(backbone, aggregation))
    return backbone.observe(pixels, TEXTS, ["a", "b"], 0, statistics).token_maps


def layer_names(**changed: Any) -> LayerNames:
    names = {"cross": ("*attn",), "manual": ("*attn",), "reference": "*.0.attn", "affinity": ("*attn",)}
    return LayerNames(**{**names, **changed})
