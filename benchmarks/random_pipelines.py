"""Pipelines of full size with random weights, for measuring speed and memory where no checkpoint can be fetched.

The configuration values are those published with the checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from goca.scenes.tokenizer import small_clip_tokenizer

_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
_CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
_CLIP_G = {
    "vocab_size": 49408,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
}
_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}


def sd15() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5: 860 M parameters in the UNet, 16 cross-attention layers."""
    return StableDiffusionPipeline(
        vae=AutoencoderKL(sample_size=512, scaling_factor=0.18215, **_VAE),
        text_encoder=CLIPTextModel(CLIPTextConfig(**_CLIP_L)),
        tokenizer=small_clip_tokenizer(),
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        scheduler=DDIMScheduler(set_alpha_to_one=False, **_SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> StableDiffusionXLPipeline:
    """Stable Diffusion XL: 2.6 B parameters in the UNet, 70 cross-attention layers."""
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL(sample_size=1024, scaling_factor=0.13025, force_upcast=True, **_VAE),
        text_encoder=CLIPTextModel(CLIPTextConfig(**_CLIP_L)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(projection_dim=1280, **_CLIP_G)),
        tokenizer=small_clip_tokenizer(),
        tokenizer_2=small_clip_tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler(set_alpha_to_one=False, **_SCHEDULE),
    )


PIPELINES = {"sd15": sd15, "sdxl": sdxl}


def build(name: str, dtype: torch.dtype) -> Any:
    """The named pipeline with seeded random weights, created in `dtype` so that memory never holds it twice."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return PIPELINES[name]()
    finally:
        torch.set_default_dtype(default)
