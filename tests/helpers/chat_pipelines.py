"""More small pipelines of families whose text encoder is a language model, and of those in Flux's blocks."""

from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.kandinsky5.pipeline_kandinsky_t2i import Kandinsky5T2IPipeline
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

from goca.backbones.cogview4 import CogView4Backbone
from goca.backbones.ernie_image import ErnieImageBackbone
from goca.backbones.flux_like import BriaBackbone, LongCatImageBackbone, OvisImageBackbone
from goca.backbones.kandinsky5 import Kandinsky5Backbone
from goca.backbones.kolors import KolorsBackbone
from goca.backbones.lumina2 import Lumina2Backbone
from goca.backbones.nucleus_image import NucleusImageBackbone
from goca.layer_names import LayerNames
from goca.scenes.tokenizer import small_t5_tokenizer
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
from tests.helpers.tiny_unet import VAE
from tests.helpers.tokenizers import (
    small_chat_tokenizer,
    small_chatglm_tokenizer,
    small_clip_tokenizer,
    small_gemma_tokenizer,
    small_qwen_tokenizer,
)

_FLUX = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}


def tiny_cogview4() -> Any:
    tokenizer = small_qwen_tokenizer()
    config = transformers.GlmConfig(vocab_size=len(tokenizer), num_hidden_layers=2, pad_token_id=0, **SMALL)
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=DEPTH,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
    )
    return diffusers.CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.GlmModel(config),
        vae=vae(),
        transformer=transformer,
        scheduler=flow(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear"),
    )


def tiny_lumina2() -> Any:
    tokenizer = small_gemma_tokenizer()
    config = transformers.Gemma2Config(vocab_size=len(tokenizer), num_hidden_layers=2, pad_token_id=0, **SMALL)
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=DEPTH,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(300, 32, 32),
        cap_feat_dim=16,
    )
    return diffusers.Lumina2Pipeline(
        transformer=transformer,
        scheduler=flow(shift=6.0),
        vae=vae(shift_factor=0.1),
        text_encoder=transformers.Gemma2Model(config),
        tokenizer=tokenizer,
    )


def tiny_kandinsky5() -> Any:
    tokenizer = small_qwen_tokenizer()
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=16,
        time_dim=16,
        out_visual_dim=4,
        model_dim=32,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=DEPTH,
        axes_dims=(4, 6, 6),
    )
    pipeline = Kandinsky5T2IPipeline(
        transformer=transformer,
        vae=vae(),
        text_encoder=qwen25_vl(tokenizer),
        tokenizer=tokenizer,  # published inside a processor, which needs torchvision
        text_encoder_2=clip(projected=False),
        tokenizer_2=small_clip_tokenizer(),
        scheduler=flow(shift=5.0),
    )
    pipeline.vae_scale_factor_spatial = 2
    return pipeline


def tiny_ovis_image() -> Any:
    tokenizer = small_chat_tokenizer()
    config = transformers.Qwen3Config(vocab_size=len(tokenizer), num_hidden_layers=2, **SMALL)
    return diffusers.OvisImagePipeline(
        scheduler=flow(shift=3.0, use_dynamic_shifting=True),
        vae=vae(shift_factor=0.1),
        text_encoder=transformers.Qwen3Model(config),
        tokenizer=tokenizer,
        transformer=diffusers.OvisImageTransformer2DModel(out_channels=16, **_FLUX),
    )


def tiny_longcat_image() -> Any:
    tokenizer = small_qwen_tokenizer()
    return diffusers.LongCatImagePipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=vae(shift_factor=0.1),
        text_encoder=qwen25_vl(tokenizer),
        tokenizer=tokenizer,
        text_processor=None,
        transformer=diffusers.LongCatImageTransformer2DModel(pooled_projection_dim=16, **_FLUX),
    )


def tiny_bria() -> Any:
    return diffusers.BriaPipeline(
        transformer=diffusers.BriaTransformer2DModel(**_FLUX),
        scheduler=flow(use_dynamic_shifting=True),
        vae=vae(shift_factor=0),
        text_encoder=t5(),
        tokenizer=small_t5_tokenizer(),
    )


def tiny_ernie_image() -> Any:
    tokenizer = small_qwen_tokenizer()
    config = transformers.Mistral3Config(
        text_config={"model_type": "mistral", "vocab_size": len(tokenizer), "num_hidden_layers": 2, **SMALL},
        vision_config={"model_type": "pixtral", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    )
    transformer = diffusers.ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=DEPTH,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    autoencoder = diffusers.AutoencoderKLFlux2(**{**VAE, "latent_channels": 4})
    autoencoder.bn.running_var.copy_(torch.linspace(0.5, 2.0, 16))
    return diffusers.ErnieImagePipeline(
        transformer=transformer,
        vae=autoencoder,
        text_encoder=transformers.Mistral3Model(config),
        tokenizer=tokenizer,
        scheduler=flow(shift=3.0),
    )


def tiny_kolors() -> Any:
    tokenizer = small_chatglm_tokenizer()
    config = ChatGLMConfig(
        num_layers=2,
        num_hidden_layers=2,
        padded_vocab_size=len(tokenizer),
        hidden_size=16,
        ffn_hidden_size=32,
        kv_channels=8,
        num_attention_heads=2,
        seq_length=64,
        multi_query_attention=True,
        original_rope=True,
    )
    encoder = ChatGLMModel(config)
    for name, parameter in encoder.named_parameters():  # it leaves its weights as they were in memory
        torch.nn.init.ones_(parameter) if "norm" in name else torch.nn.init.normal_(parameter, std=0.2)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        encoder_hid_dim=16,
        encoder_hid_dim_type="text_proj",
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    return diffusers.KolorsPipeline(
        vae=vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(),
    )


def tiny_nucleus_image() -> Any:
    tokenizer = small_chat_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ message.content }}",
        "{% if message.content is string %}{{ message.content }}{% else %}{{ message.content[0].text }}{% endif %}",
    )
    text = {**SMALL, "num_hidden_layers": 8, "vocab_size": len(tokenizer)}  # the published layer is the eighth from the end
    text["rope_scaling"] = {"mrope_section": [1, 1, 2], "rope_type": "default"}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config={**vision, "deepstack_visual_indexes": [0]})
    transformer = diffusers.NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=DEPTH,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
        mlp_ratio=12.0,
        dense_moe_strategy="leave_first_block_dense",
        num_experts=2,
        moe_intermediate_dim=16,
        capacity_factors=1.0,
    )
    for name, parameter in transformer.named_parameters():
        if "experts" in name:  # it leaves their weights as they were in memory
            torch.nn.init.normal_(parameter, std=0.1)
    return diffusers.NucleusMoEImagePipeline(
        transformer=transformer,
        scheduler=flow(use_dynamic_shifting=True),
        vae=qwen_vae(),
        text_encoder=transformers.Qwen3VLForConditionalGeneration(config),
        processor=tokenizer,  # published inside a processor, which needs torchvision
    )


_UNET = LayerNames(cross=("*attn2",), manual=("mid_block*attn2",), reference="up_blocks.0*attn2", affinity=("*attn1",))
_KANDINSKY = LayerNames(
    cross=("*cross_attention",),
    manual=("*.1.cross_attention",),
    reference="*.1.cross_attention",
    affinity=("*.0.self_attention", "*.1.self_attention"),
)
_LENGTH = {"text_length": 64}

FAMILIES: dict[str, Family] = {
    "cogview4": Family(CogView4Backbone, tiny_cogview4, blocks("transformer_blocks.*.attn1"), {"text_length": 48}, causal=True),
    "lumina2": Family(
        Lumina2Backbone,
        tiny_lumina2,
        blocks("layers.*.attn"),
        {"text_length": 256},
        masked=True,
        causal=True,
        refined=("noise_refiner", "context_refiner"),
    ),
    "kandinsky5": Family(
        Kandinsky5Backbone, tiny_kandinsky5, _KANDINSKY, _LENGTH, causal=True, refined=("text_transformer_blocks",)
    ),
    "ovis_image": Family(OvisImageBackbone, tiny_ovis_image, DOUBLE_AND_SINGLE, _LENGTH, causal=True),
    "longcat_image": Family(LongCatImageBackbone, tiny_longcat_image, DOUBLE_AND_SINGLE, _LENGTH, causal=True),
    "bria": Family(BriaBackbone, tiny_bria, DOUBLE_AND_SINGLE, {"text_length": 24}, model="auto"),
    "ernie_image": Family(
        ErnieImageBackbone, tiny_ernie_image, blocks("layers.*.self_attention"), _LENGTH, masked=True, causal=True
    ),
    "kolors": Family(KolorsBackbone, tiny_kolors, _UNET, {"text_length": 40}, causal=True),
    "nucleus_image": Family(
        NucleusImageBackbone, tiny_nucleus_image, JOINT, {"text_length": 320}, model="auto", masked=True, causal=True
    ),
}
