"""Kandinsky 5 text-to-image: blocks with self- and cross-attention; blocks of its own mix the text, a user turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers.pipelines.kandinsky5.pipeline_kandinsky_t2i import prompt_clean
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.loading.quantization import dense_weight
from goca.backbones.mixins import CrossAttention, FlowMatching
from goca.backbones.registry import backbone
from goca.backbones.text import after_prefix
from goca.prompts.prompt import TextSegment

_CLIP_LENGTH = 77


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class Kandinsky5Backbone(FlowMatching, CrossAttention):
    """Padding is masked nowhere. The pipeline pads to the longest prompt of a batch; here every prompt has the same length.

    Args beyond `Backbone`'s:
        text_length: tokens per prompt; the model takes up to 1024, and unused ones draw attention.
    """

    text_length: PositiveInt = 128

    pipelines: ClassVar[tuple[str, ...]] = ("Kandinsky5T2IPipeline",)
    gives_levels: ClassVar[bool] = False
    shifts_latents: ClassVar[bool] = False
    unobserved: ClassVar[tuple[str, ...]] = ("text_transformer_blocks.*",)
    text_changes: ClassVar[bool] = True

    @property
    def patch(self) -> int:
        side: int = self.pipeline.transformer.config.patch_size[1]
        return side

    @property
    def compression(self) -> int:
        factor: int = self.pipeline.vae_scale_factor_spatial
        return factor

    @property
    def longest_side(self) -> int:
        """Rows and columns are looked up in tables."""
        side: int = min(self.pipeline.transformer.visual_rope_embeddings.max_pos[1:])
        return side * self.size_multiple

    @property
    def _tokenizer(self) -> Any:
        return getattr(self.pipeline.tokenizer, "tokenizer", self.pipeline.tokenizer)  # published inside a processor

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        template = self.pipeline.prompt_template
        return (after_prefix(self._tokenizer, template, self.text_length, self._dropped, side="right"),)

    @property
    def _dropped(self) -> int:
        return len(self._tokenizer(self.pipeline.prompt_template.partition("{}")[0])["input_ids"])

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        dropped = self._dropped
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        chats = [self.pipeline.prompt_template.format(text) for text in texts]
        length = dropped + self.text_length
        ids = self._tokenizer(chats, max_length=length, padding_side="right", **options)["input_ids"].to(self.torch_device)
        states = self.pipeline.text_encoder(input_ids=ids, output_hidden_states=True).hidden_states[-1][:, dropped:]
        pooled = self.pipeline.tokenizer_2(list(texts), max_length=_CLIP_LENGTH, **options).to(self.torch_device)
        return {
            "encoder_hidden_states": states.to(self.torch_dtype),
            "pooled_projections": self.pipeline.text_encoder_2(**pooled).pooler_output.to(self.torch_dtype),
        }

    def blank_conditioning(self) -> Conditioning:
        config = self.pipeline.transformer.config
        return {
            "encoder_hidden_states": self.blank(1, self.text_length, config.in_text_dim),
            "pooled_projections": self.blank(1, config.in_text_dim2),
        }

    def latent_grid(self, arguments: Mapping[str, Any]) -> tuple[int, int]:
        frames: Tensor = arguments["hidden_states"]  # (B, 1, h, w, C)
        return frames.shape[2], frames.shape[3]

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        """The transformer is one for videos, channels last; an image is a single frame, to which nothing is given before."""
        frames = noisy.permute(0, 2, 3, 1).unsqueeze(1)
        if self.pipeline.transformer.config.visual_cond:
            given = torch.zeros_like(frames[..., :1])
            frames = torch.cat([frames, torch.zeros_like(frames), given], dim=-1)
        rows, columns = self.token_grid((noisy.shape[-2], noisy.shape[-1]))
        places = [torch.arange(count, device=noisy.device) for count in (1, rows, columns)]
        text = torch.arange(conditioning["encoder_hidden_states"].shape[1], device=noisy.device)
        times = self.times(noisy, scale=1000).to(noisy)
        velocity = self.denoiser(frames, timestep=times, visual_rope_pos=places, text_rope_pos=text, **conditioning).sample
        return velocity[:, 0].permute(0, 3, 1, 2)

    def drawn_text(self, text: str, call: Mapping[str, Any]) -> str:
        return str(prompt_clean(text))

    def is_text_layer(self, layer: str) -> bool:
        return layer.endswith("cross_attention")

    def paired_self_attention(self, layer: str) -> str:
        return layer.removesuffix("cross_attention").removesuffix("self_attention") + "self_attention"

    def projection(self, layer: str, like: Tensor) -> Tensor | None:
        module: Any = self.attention_modules[layer]
        return dense_weight(module.out_layer).to(like)

    def projection_bias(self, layer: str, like: Tensor) -> Tensor | None:
        module: Any = self.attention_modules[layer]
        return None if module.out_layer.bias is None else module.out_layer.bias.to(like)
