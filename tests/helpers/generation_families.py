"""Small pipelines that can draw: one per family whose guidance runs both halves in one batch."""

from typing import Any

import diffusers
import torch

from goca.backbones.base import Backbone
from goca.method import Method
from goca.method.aggregation import Aggregation
from goca.method.calibration import Calibration
from goca.method.refinement import Affinity, Refinements
from tests.helpers.tiny_pipelines import tiny_backbone, tiny_pipeline
from tests.helpers.tiny_unet import VAE

FAMILIES = ("sd", "sdxl", "pixart_alpha", "pixart_sigma", "hunyuan_dit", "sd3", "aura_flow")
_REAL_VAE = {"block_out_channels": [8] * 4, "down_block_types": ["DownEncoderBlock2D"] * 4}  # eightfold, as HunyuanDiT expects


def drawing_pipeline(family: str) -> Any:
    """The tiny pipeline of a family, changed where its real size is wired into diffusers' call."""
    if family == "pixart_alpha":  # size conditions are made for full-size transformers alone
        return diffusers.PixArtAlphaPipeline(**tiny_pipeline("pixart_sigma").components)
    pipeline = tiny_pipeline(family)
    if family == "hunyuan_dit":
        torch.manual_seed(0)
        pipeline.vae = diffusers.AutoencoderKL(**{**VAE, **_REAL_VAE, "up_block_types": ["UpDecoderBlock2D"] * 4})
        return diffusers.HunyuanDiTPipeline(**pipeline.components, requires_safety_checker=False)
    return pipeline


def drawing_backbone(family: str, **options: Any) -> Backbone:
    return tiny_backbone(family, **{"size": 64, **options}).load(drawing_pipeline(family))


def region_method(backbone: Backbone, goca: bool = True) -> Method:
    """GoCA's method of finding regions, or a plain one."""
    layers = backbone.layers
    aggregation = Aggregation(
        heads="dot_product" if goca else "average",
        layers="dot_product" if goca else "average",
        cross_layers=layers.cross,
        reference=layers.reference,
        feature_size=16,
    )
    calibration = Calibration(("per_pixel", "minmax") if goca else ("minmax",))
    return Method(aggregation, calibration, Refinements((Affinity(layers=layers.affinity, order=2),)))
