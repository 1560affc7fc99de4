"""Small diffusers pipelines, built from config with fresh weights, in the shapes of the large ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from goca.scenes.tokenizer import small_clip_tokenizer


def stable_diffusion(
    unet: Mapping[str, Any], vae: Mapping[str, Any], text_encoder: Mapping[str, Any], tokens: int = 77
) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline: UNet with cross-attention, KL autoencoder, causal CLIP text encoder, DDIM noise schedule.

    Args:
        unet, vae, text_encoder: constructor arguments of `UNet2DConditionModel`, `AutoencoderKL` and `CLIPTextConfig`.
        tokens: length of every prompt, padding included.
    """
    tokenizer = small_clip_tokenizer(max_length=tokens)
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=tokens,
        **text_encoder,
    )
    return StableDiffusionPipeline(
        vae=AutoencoderKL(**vae),
        text_encoder=CLIPTextModel(text_config),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(cross_attention_dim=text_config.hidden_size, **unet),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
