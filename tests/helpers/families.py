"""What the tests know of a family: its adapter, a small pipeline of its real classes, and how it treats text."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import transformers

from goca.backbones.base import Backbone
from goca.layer_names import LayerNames
from goca.scenes.tokenizer import small_clip_tokenizer, small_t5_tokenizer
from tests.helpers.tiny_unet import VAE

DEPTH = 3
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
CROSS = LayerNames(cross=("*attn2",), manual=("*.1.attn2",), reference="*.1.attn2", affinity=("*.0.attn1", "*.1.attn1"))
JOINT = LayerNames(
    cross=("*attn",), manual=("*.1.attn",), reference="transformer_blocks.1.attn", affinity=("*.0.attn", "*.1.attn")
)
DOUBLE_AND_SINGLE = LayerNames(**{**JOINT.__dict__, "reference": "single_transformer_blocks.0.attn", "feature": "output"})


@dataclass(frozen=True)
class Family:
    """A row of the family tests.

    Args:
        layers: of the small model.
        settings: the backbone's own ones that differ for it.
        model: its config in `conf/model`; empty: named as the family.
        masked: padding gets no attention.
        causal: tokens of the text know those before them alone, so that a changed word shows where it lies.
        refined: names of block lists that mix the text before the image meets it.
    """

    adapter: type[Backbone]
    pipeline: Callable[[], Any]
    layers: LayerNames
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    masked: bool = False
    causal: bool = False
    refined: tuple[str, ...] = ()


def vae(channels: int = 4, **options: Any) -> diffusers.AutoencoderKL:
    """A small autoencoder that halves an image's sides."""
    return diffusers.AutoencoderKL(**{**VAE, "latent_channels": channels, **options})


def flow(**options: Any) -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def blocks(pattern: str) -> LayerNames:
    """Every layer that a pattern with one star names, the second of them as reference."""
    first, second = pattern.replace("*", "0"), pattern.replace("*", "1")
    return LayerNames(cross=(pattern,), manual=(second,), reference=second, affinity=(first, second))


def t5(width: int = 16) -> transformers.T5EncoderModel:
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return transformers.T5EncoderModel(transformers.T5Config(vocab_size=len(small_t5_tokenizer()), **sizes)).eval()


def clip(projected: bool, tokens: int = 77) -> Any:
    tokenizer = small_clip_tokenizer(max_length=tokens)
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        max_position_embeddings=tokens,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
    )
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


def qwen25_vl(tokenizer: Any) -> Any:
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        "vocab_size": len(tokenizer),
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, vocab_size=len(tokenizer))
    )


def qwen_vae() -> diffusers.AutoencoderKLQwenImage:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1] * 4,
        latents_std=[1.5] * 4,
    )
