"""Small diffusers pipelines, built from config with fresh weights, in the shapes of the large ones.

Every builder takes the constructor arguments of its networks; what has to agree between them is filled in here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import transformers
from diffusers import AutoencoderKL, PixArtSigmaPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline
from torch import nn
from transformers import PreTrainedTokenizerBase

from goca.scenes.tokenizer import small_clip_tokenizer, small_t5_tokenizer

Arguments = Mapping[str, Any]


def stable_diffusion(unet: Arguments, vae: Arguments, text_encoder: Arguments, tokens: int = 77) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline: UNet with cross-attention, KL autoencoder, causal CLIP text encoder, DDIM noise schedule.

    Args:
        unet, vae, text_encoder: constructor arguments of `UNet2DConditionModel`, `AutoencoderKL` and `CLIPTextConfig`.
        tokens: length of every prompt, padding included.
    """
    tokenizer = small_clip_tokenizer(max_length=tokens)
    encoder = transformers.CLIPTextModel(_clip_config(tokenizer, text_encoder))
    return StableDiffusionPipeline(
        vae=AutoencoderKL(**vae),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(cross_attention_dim=encoder.config.hidden_size, **unet),
        scheduler=_ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def pixart_sigma(transformer: Arguments, vae: Arguments, text_encoder: Arguments, tokens: int) -> PixArtSigmaPipeline:
    """A PixArt-Sigma pipeline: transformer blocks with self- and cross-attention, T5 text whose padding is masked.

    Args:
        transformer, vae, text_encoder: constructor arguments of `PixArtTransformer2DModel`, `AutoencoderKL` and `T5Config`.
        tokens: length of every prompt, padding included.
    """
    tokenizer = small_t5_tokenizer(max_length=tokens)
    encoder = transformers.T5EncoderModel(transformers.T5Config(vocab_size=len(tokenizer), **text_encoder))
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=AutoencoderKL(**vae),
        transformer=diffusers.PixArtTransformer2DModel(caption_channels=encoder.config.d_model, **transformer),
        scheduler=_ddim(),
    )


def stable_diffusion_3(
    transformer: Arguments, vae: Arguments, text_encoder: Arguments, tokens: int
) -> StableDiffusion3Pipeline:
    """A Stable Diffusion 3 pipeline without T5: joint attention of image and text, two CLIP encoders, a rectified flow.

    Args:
        transformer, vae: constructor arguments of `SD3Transformer2DModel` and `AutoencoderKL`.
        text_encoder: those of `CLIPTextConfig`, for both encoders.
        tokens: length of every prompt, padding included; as many zeros stand where T5's embeddings would be.
    """
    tokenizer = small_clip_tokenizer(max_length=tokens)
    first, second = (
        transformers.CLIPTextModelWithProjection(
            _clip_config(tokenizer, {**text_encoder, "projection_dim": text_encoder["hidden_size"]})
        )
        for _ in range(2)
    )
    width = 2 * text_encoder["hidden_size"]
    return StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(joint_attention_dim=width, pooled_projection_dim=width, **transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKL(shift_factor=0.0, **vae),
        text_encoder=first,
        tokenizer=tokenizer,
        text_encoder_2=second,
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def denoiser_of(pipeline: Any) -> nn.Module:
    """The pipeline's denoising network, under whichever name its family keeps it."""
    return pipeline.unet if "unet" in pipeline.components else pipeline.transformer


def text_encoders_of(pipeline: Any) -> list[nn.Module]:
    """The pipeline's text encoders, in order."""
    return [part for name, part in pipeline.components.items() if name.startswith("text_encoder") and part is not None]


def _clip_config(tokenizer: PreTrainedTokenizerBase, sizes: Arguments) -> transformers.CLIPTextConfig:
    return transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=tokenizer.model_max_length,
        **sizes,
    )


def _ddim() -> diffusers.DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
