"""Small pipelines of the families whose text encoder is a language model, with chat templates like the published ones."""

from typing import Any

import diffusers
import torch
import transformers
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

from goca.backbones.flux2 import Flux2Backbone
from goca.backbones.prx import PRXBackbone
from goca.backbones.sana import SanaBackbone
from goca.backbones.z_image import ZImageBackbone
from tests.helpers.families import CROSS, DEPTH, DOUBLE_AND_SINGLE, SMALL, Family, blocks, flow, vae
from tests.helpers.tiny_unet import VAE
from tests.helpers.tokenizers import small_chat_tokenizer, small_gemma_tokenizer, small_mistral_tokenizer


def qwen3(tokenizer: Any, layers: int = 2) -> Any:
    config = transformers.Qwen3Config(vocab_size=len(tokenizer), num_hidden_layers=layers, **SMALL)
    return transformers.Qwen3ForCausalLM(config)


def _flux2_parts(width: int, guidance: bool) -> dict[str, Any]:
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * width,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )
    autoencoder = diffusers.AutoencoderKLFlux2(**{**VAE, "latent_channels": 4})
    autoencoder.bn.running_mean.copy_(torch.linspace(-0.2, 0.2, 16))
    autoencoder.bn.running_var.copy_(torch.linspace(0.5, 2.0, 16))
    return {"transformer": transformer, "vae": autoencoder, "scheduler": flow(use_dynamic_shifting=True)}


def tiny_flux2() -> Any:
    tokenizer = small_mistral_tokenizer()  # the published pipeline has a processor around it, read as this
    # The published layers are numbers 10, 20 and 30: the small encoder is as deep.
    config = transformers.Mistral3Config(
        text_config={"model_type": "mistral", "vocab_size": len(tokenizer), "num_hidden_layers": 30, **SMALL},
        vision_config={"model_type": "pixtral", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
    )
    encoder = transformers.Mistral3ForConditionalGeneration(config)
    return diffusers.Flux2Pipeline(tokenizer=tokenizer, text_encoder=encoder, **_flux2_parts(16, guidance=True))


def tiny_flux2_klein() -> Any:
    tokenizer = small_chat_tokenizer()
    encoder = qwen3(tokenizer, layers=27)
    return diffusers.Flux2KleinPipeline(tokenizer=tokenizer, text_encoder=encoder, **_flux2_parts(16, guidance=False))


def tiny_z_image() -> Any:
    tokenizer = small_chat_tokenizer()
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=DEPTH,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 64, 64],
    )
    torch.nn.init.normal_(transformer.x_pad_token, std=0.02)  # made without values
    torch.nn.init.normal_(transformer.cap_pad_token, std=0.02)
    return diffusers.ZImagePipeline(
        scheduler=flow(shift=3.0), vae=vae(), text_encoder=qwen3(tokenizer), tokenizer=tokenizer, transformer=transformer
    )


def tiny_sana() -> Any:
    tokenizer = small_gemma_tokenizer()
    config = transformers.Gemma2Config(vocab_size=len(tokenizer), num_hidden_layers=2, pad_token_id=0, **SMALL)
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=DEPTH,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )
    autoencoder = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )
    schedule = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    return diffusers.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.Gemma2Model(config),
        vae=autoencoder,
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(**schedule),
    )


def tiny_prx() -> Any:
    tokenizer = small_gemma_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, **SMALL}
    config = transformers.T5GemmaConfig(encoder=sizes, decoder=sizes, is_encoder_decoder=False)
    encoder: Any = T5GemmaEncoder(config.encoder)

    def save(folder: Any, **options: Any) -> None:
        T5GemmaEncoder.save_pretrained(encoder, folder, **options)
        config.save_pretrained(folder)  # as published: the encoder's configuration lies inside that of the whole model

    encoder.save_pretrained = save
    transformer = diffusers.PRXTransformer2DModel(
        in_channels=4, context_in_dim=16, hidden_size=16, mlp_ratio=2.0, num_heads=2, depth=DEPTH, axes_dim=[4, 4]
    )
    return diffusers.PRXPipeline(
        transformer=transformer, scheduler=flow(shift=3.0), text_encoder=encoder, tokenizer=tokenizer, vae=vae()
    )


FAMILIES: dict[str, Family] = {
    "flux2_dev": Family(Flux2Backbone, tiny_flux2, DOUBLE_AND_SINGLE, {"text_length": 160}, causal=True),
    "flux2_klein": Family(Flux2Backbone, tiny_flux2_klein, DOUBLE_AND_SINGLE, {"text_length": 64}, causal=True),
    "z_image": Family(
        ZImageBackbone,
        tiny_z_image,
        blocks("layers.*.attention"),
        {"text_length": 64},
        causal=True,
        refined=("noise_refiner", "context_refiner"),
    ),
    "sana": Family(SanaBackbone, tiny_sana, CROSS, {"text_length": 40}, masked=True, causal=True),
    "prx": Family(PRXBackbone, tiny_prx, blocks("blocks.*.attention"), {"text_length": 24}, masked=True),
}
