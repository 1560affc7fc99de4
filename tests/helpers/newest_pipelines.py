"""Small pipelines of the families that came last: Qwen-Image-2.1, FIBO, Krea 2, HiDream-I1, HunyuanImage 2.1."""

from pathlib import Path
from typing import Any

import diffusers
import transformers

from goca.backbones.fibo import FiboBackbone
from goca.backbones.hidream import HiDreamBackbone
from goca.backbones.hunyuan_image import HunyuanImageBackbone
from goca.backbones.krea2 import Krea2Backbone
from goca.backbones.qwen_image21 import QwenImage21Backbone
from goca.layer_names import LayerNames
from goca.scenes.tokenizer import small_clip_tokenizer, small_t5_tokenizer
from tests.helpers.families import (
    DEPTH,
    DOUBLE_AND_SINGLE,
    JOINT,
    SMALL,
    Family,
    blocks,
    clip,
    flow,
    qwen25_vl,
    qwen_vae,
    t5,
    vae,
)
from tests.helpers.tokenizers import small_chat_tokenizer, small_llama_tokenizer, small_qwen_tokenizer

_FRAMES = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [False]}
_SCALES = {"latents_mean": [0.1] * 4, "latents_std": [1.5] * 4, "scale_factor_spatial": 2}


class _Processor(transformers.Qwen3VLProcessor):
    """The published class with its half for words alone, as the other half needs torchvision."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: Any = None, **options: Any) -> Any:
        return self.tokenizer(text, **options)

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        return self.tokenizer.apply_chat_template([conversation], **options)

    def save_pretrained(self, folder: Path, **options: Any) -> None:
        self.tokenizer.save_pretrained(folder, **options)


_Processor.__name__, _Processor.__module__ = "Qwen3VLProcessor", transformers.Qwen3VLProcessor.__module__


def qwen3_vl(tokenizer: Any, kind: Any, layers: int = 2) -> Any:
    text = {**SMALL, "num_hidden_layers": layers, "vocab_size": len(tokenizer)}
    text["rope_scaling"] = {"mrope_section": [1, 1, 2], "rope_type": "default"}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    return kind(transformers.Qwen3VLConfig(text_config=text, vision_config={**vision, "deepstack_visual_indexes": [0]}))


def tiny_qwen_image21() -> Any:
    tokenizer = small_chat_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image_pad|>"]}, replace_extra_special_tokens=False)
    transformer = diffusers.QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=DEPTH,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    return diffusers.QwenImage21Pipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKLQwenImage21(**{**_FRAMES, "dim_mult": [1, 1]}, decoder_base_dim=4, **_SCALES),
        text_encoder=qwen3_vl(tokenizer, transformers.Qwen3VLForConditionalGeneration),
        processor=_Processor(tokenizer),
        transformer=transformer,
    )


def tiny_fibo() -> Any:
    tokenizer = small_qwen_tokenizer()
    sizes = {**SMALL, "num_hidden_layers": 2}
    del sizes["head_dim"]
    encoder = transformers.SmolLM3ForCausalLM(transformers.SmolLM3Config(vocab_size=len(tokenizer), pad_token_id=0, **sizes))
    transformer = diffusers.BriaFiboTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=[4, 6, 6],
        text_encoder_dim=16,
    )
    return diffusers.BriaFiboPipeline(
        transformer=transformer,
        scheduler=flow(use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKLWan(**_FRAMES, **_SCALES),
        text_encoder=encoder,
        tokenizer=tokenizer,
    )


def tiny_krea2() -> Any:
    tokenizer = small_qwen_tokenizer()
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=DEPTH,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    return diffusers.Krea2Pipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=qwen_vae(),
        text_encoder=qwen3_vl(tokenizer, transformers.Qwen3VLModel),
        tokenizer=tokenizer,
        transformer=transformer,
        text_encoder_select_layers=(0, 1, 2),
    )


def tiny_hidream() -> Any:
    llama = small_llama_tokenizer()
    sizes = {**SMALL, "num_hidden_layers": 4}
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[16, 16],
        text_emb_dim=32,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=[0, 1, 2, 3],
    )
    return diffusers.HiDreamImagePipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=vae(shift_factor=0.1),
        text_encoder=clip(projected=True),
        tokenizer=small_clip_tokenizer(),
        text_encoder_2=clip(projected=True),
        tokenizer_2=small_clip_tokenizer(),
        text_encoder_3=t5(),
        tokenizer_3=small_t5_tokenizer(),
        text_encoder_4=transformers.LlamaForCausalLM(
            transformers.LlamaConfig(vocab_size=len(llama), pad_token_id=0, attn_implementation="eager", **sizes)
        ),
        tokenizer_4=llama,
        transformer=transformer,
    )


def tiny_hunyuan_image() -> Any:
    tokenizer = small_qwen_tokenizer()
    transformer = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=16,
        rope_axes_dim=(4, 4),
    )
    autoencoder = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=32,
        scaling_factor=0.75,
    )
    return diffusers.HunyuanImagePipeline(
        scheduler=flow(shift=5.0),
        vae=autoencoder,
        text_encoder=qwen25_vl(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=t5(),
        tokenizer_2=transformers.ByT5Tokenizer(),
        transformer=transformer,
    )


_HIDREAM = LayerNames(
    cross=("*attn1",),
    manual=("*.1.block.attn1",),
    reference="single_stream_blocks.0.block.attn1",
    affinity=("*.0.block.attn1",),
    feature="output",
)

FAMILIES: dict[str, Family] = {
    "qwen_image_21": Family(QwenImage21Backbone, tiny_qwen_image21, JOINT, {"text_length": 64}, masked=True, causal=True),
    "fibo": Family(FiboBackbone, tiny_fibo, DOUBLE_AND_SINGLE, {"text_length": 24}, masked=True, causal=True),
    "krea2": Family(
        Krea2Backbone,
        tiny_krea2,
        blocks("transformer_blocks.*.attn"),
        {"text_length": 64},
        masked=True,
        causal=True,
        refined=("text_fusion.refiner_blocks",),
    ),
    "hidream_i1": Family(HiDreamBackbone, tiny_hidream, _HIDREAM, {"text_length": 32}),
    "hunyuan_image": Family(
        HunyuanImageBackbone,
        tiny_hunyuan_image,
        DOUBLE_AND_SINGLE,
        {"text_length": 64},
        masked=True,
        causal=True,
        refined=("context_embedder.token_refiner.refiner_blocks",),
    ),
}
