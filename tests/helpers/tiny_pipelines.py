"""Small transformer pipelines of the real diffusers classes with seeded weights, one per family, and backbones around them."""

import dataclasses
from typing import Any

import diffusers
import torch
import transformers

from goca.backbones.aura_flow import AuraFlowBackbone
from goca.backbones.base import Backbone
from goca.backbones.chroma import ChromaBackbone
from goca.backbones.flux import FluxBackbone
from goca.backbones.hunyuan import HunyuanBackbone
from goca.backbones.pixart import PixArtBackbone
from goca.backbones.qwen_image import QwenImageBackbone
from goca.backbones.sd3 import SD3Backbone
from goca.backbones.unet import UNetBackbone
from goca.layer_names import LayerNames
from goca.scenes.tokenizer import small_clip_tokenizer, small_t5_tokenizer
from tests.helpers import chat_pipelines, newer_pipelines, newest_pipelines
from tests.helpers.families import CROSS, DEPTH, DOUBLE_AND_SINGLE, JOINT, Family, clip, flow, qwen25_vl, qwen_vae, t5, vae
from tests.helpers.tiny_unet import tiny_sd, tiny_sdxl
from tests.helpers.tokenizers import small_bert_tokenizer, small_llama_tokenizer, small_qwen_tokenizer


def tiny_pixart(sigma: bool = False) -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=DEPTH,
        cross_attention_dim=24,
        sample_size=16,
        patch_size=2,
        caption_channels=16,
        use_additional_conditions=not sigma,
    )
    kind = diffusers.PixArtSigmaPipeline if sigma else diffusers.PixArtAlphaPipeline
    return kind(
        tokenizer=small_t5_tokenizer(),
        text_encoder=t5(),
        vae=vae(),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def tiny_hunyuan() -> Any:
    bert = transformers.BertConfig(
        vocab_size=len(small_bert_tokenizer()), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    transformer = diffusers.HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=4,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        text_len=77,
        text_len_t5=256,
        pooled_projection_dim=16,
        use_style_cond_and_image_meta_size=True,
    )
    return diffusers.HunyuanDiTPipeline(
        vae=vae(),
        text_encoder=transformers.BertModel(bert),
        tokenizer=small_bert_tokenizer(),
        transformer=transformer,
        scheduler=diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.018),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5(),
        tokenizer_2=small_t5_tokenizer(),
    )


def tiny_flux(guidance: bool = True) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    return diffusers.FluxPipeline(
        scheduler=flow(shift=3.0, use_dynamic_shifting=guidance),
        vae=vae(shift_factor=0.1, scaling_factor=0.4),
        text_encoder=clip(projected=False),
        tokenizer=small_clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=small_t5_tokenizer(),
        transformer=transformer,
    )


def tiny_sd3(dual: tuple[int, ...] = (), with_t5: bool = True) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=DEPTH,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
        dual_attention_layers=dual,
        qk_norm="rms_norm" if dual else None,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow(shift=3.0),
        vae=vae(shift_factor=0.1),
        text_encoder=clip(projected=True),
        tokenizer=small_clip_tokenizer(),
        text_encoder_2=clip(projected=True),
        tokenizer_2=small_clip_tokenizer(),
        text_encoder_3=t5(32) if with_t5 else None,
        tokenizer_3=small_t5_tokenizer() if with_t5 else None,
    )


def tiny_chroma() -> Any:
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return diffusers.ChromaPipeline(
        scheduler=flow(), vae=vae(), text_encoder=t5(), tokenizer=small_t5_tokenizer(), transformer=transformer
    )


def tiny_aura_flow() -> Any:
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pos_embed_max_size=256,
    )
    tokenizer = small_llama_tokenizer()
    config = transformers.UMT5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return diffusers.AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.UMT5EncoderModel(config),
        vae=vae(),
        transformer=transformer,
        scheduler=flow(shift=1.73),
    )


def tiny_qwen_image() -> Any:
    tokenizer = small_qwen_tokenizer()
    encoder = qwen25_vl(tokenizer)
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=DEPTH,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    return diffusers.QwenImagePipeline(
        scheduler=flow(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=qwen_vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )


_UNET = LayerNames(cross=("*attn2",), manual=("mid_block*attn2",), reference="up_blocks.0*attn2", affinity=("*attn1",))

FAMILIES: dict[str, Family] = {
    "sd": Family(UNetBackbone, tiny_sd, _UNET, model="sd15"),
    "sdxl": Family(UNetBackbone, tiny_sdxl, _UNET),
    "pixart_alpha": Family(PixArtBackbone, tiny_pixart, CROSS, {"text_length": 24}, masked=True),
    "pixart_sigma": Family(PixArtBackbone, lambda: tiny_pixart(sigma=True), CROSS, {"text_length": 30}, masked=True),
    "hunyuan_dit": Family(HunyuanBackbone, tiny_hunyuan, CROSS),
    "flux_dev": Family(FluxBackbone, tiny_flux, DOUBLE_AND_SINGLE, {"text_length": 24}),
    "flux_schnell": Family(FluxBackbone, lambda: tiny_flux(guidance=False), DOUBLE_AND_SINGLE, {"text_length": 16}),
    "sd3": Family(SD3Backbone, tiny_sd3, JOINT, {"text_length": 24}),
    "sd35": Family(SD3Backbone, lambda: tiny_sd3(dual=(0, 1)), JOINT, {"text_length": 24}),
    "sd3_without_t5": Family(SD3Backbone, lambda: tiny_sd3(with_t5=False), JOINT, {"text_length": 24}, model="sd3"),
    "chroma": Family(ChromaBackbone, tiny_chroma, DOUBLE_AND_SINGLE, {"text_length": 24}),
    "aura_flow": Family(AuraFlowBackbone, tiny_aura_flow, DOUBLE_AND_SINGLE, {"text_length": 40}),
    "qwen_image": Family(QwenImageBackbone, tiny_qwen_image, JOINT, {"text_length": 64}, masked=True, causal=True),
    **newer_pipelines.FAMILIES,
    **chat_pipelines.FAMILIES,
    **newest_pipelines.FAMILIES,
}


def tiny_pipeline(family: str) -> Any:
    torch.manual_seed(0)
    pipeline = FAMILIES[family].pipeline()
    for name in ("unet", "transformer"):
        if hasattr(pipeline, name):
            _spread(getattr(pipeline, name))
    return pipeline


def tiny_backbone(family: str, **options: Any) -> Backbone:
    """A backbone that is not loaded; `load(tiny_pipeline(family))` or a saved folder as its checkpoint completes it."""
    row = FAMILIES[family]
    defaults: dict[str, Any] = {
        "name": family,
        "checkpoint": "in-memory",
        "size": 32,
        "timestep": 100,
        "feature_size": 16,
        "device": "cpu",
        "layers": row.layers,
    }
    return row.adapter(**{**defaults, **row.settings, **options})


def _spread(denoiser: torch.nn.Module) -> None:
    """Fresh weights attend almost evenly, and gates of fresh blocks may be closed: make maps differ and blocks matter."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in denoiser.named_parameters():
        if name.endswith((".to_q.weight", ".add_q_proj.weight")):
            parameter.data.mul_(6)
        elif parameter.data.abs().max() == 0:
            parameter.data.normal_(0, 0.1, generator=generator)


def family_overrides(family: str, checkpoint: Any) -> list[str]:
    """The family's own yaml with the sizes and layers of its small model."""
    row = FAMILIES[family]
    layers, settings, model = row.layers, row.settings, row.model or family
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(layers).items()}
    values = {"checkpoint": checkpoint, "size": 32, "feature_size": 16, "variant": "null", "device": "cpu", **settings}
    changed = [f"{'+' if model == 'auto' and key in settings else ''}model.{key}={value}" for key, value in values.items()]
    lists.pop("peers")  # these belong to full-size models
    changed += [f"model.layers.{key}={str(value).replace(' ', '')}" for key, value in lists.items()]
    return [f"model={model}", *changed, "logger=none", "limit=2", "data.batch_size=2"]
