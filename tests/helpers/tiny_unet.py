"""Small pipelines of the real diffusers classes with seeded weights."""

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from goca.backbones.unet import UNetBackbone
from goca.layer_names import LayerNames
from goca.scenes.architectures import stable_diffusion
from goca.scenes.tokenizer import small_clip_tokenizer

VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_sd(seed: int = 0) -> StableDiffusionPipeline:
    """Two levels (16 x 16 and 8 x 8 for a 32 px image), heads of unequal number, 20 tokens."""
    torch.manual_seed(seed)
    unet = {
        "sample_size": 16,
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "attention_head_dim": [2, 4],
        "norm_num_groups": 4,
        "down_block_types": ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2,
    }
    return stable_diffusion(unet, VAE, TEXT, tokens=20)


def tiny_sdxl(seed: int = 0) -> StableDiffusionXLPipeline:
    """SDXL's shape: two text encoders, pooled embedding and sizes as added conditioning, several blocks per transformer."""
    torch.manual_seed(seed)
    tokenizer = small_clip_tokenizer(max_length=20)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, max_position_embeddings=20, projection_dim=16, **TEXT
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL(**VAE, force_upcast=True),
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        tokenizer_2=small_clip_tokenizer(max_length=20),
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    )


def tiny_unet_backbone(pipeline: Any = None, **options: Any) -> UNetBackbone:
    """A loaded backbone around a tiny pipeline; `options` override its settings."""
    settings: dict[str, Any] = {
        "name": "tiny",
        "checkpoint": "in-memory",
        "size": 32,
        "timestep": 100,
        "feature_size": 16,
        "device": "cpu",
        "layers": LayerNames(
            cross=("*attn2",), manual=("mid_block*attn2",), reference="up_blocks.0*attn2", affinity=("*attn1",)
        ),
    }
    return UNetBackbone(**{**settings, **options}).load(pipeline or tiny_sd())
